"""What a script says when it wants its emissions measured: that it does, and in which country its electricity is made.

The measuring is the agent's (docs/emissions.md). A country is needed, because the same energy is eighty times the emissions in one than
in another: none is guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simspool.spool.agent_address import living_agent

from .errors import ConfigError

if TYPE_CHECKING:
    from .config import Config

WANTED, COUNTRY = "enable_emission_metrics", "emissions_country"
HOW_TO_SAY = 'add to simspool.toml\n\n[emissions]\ncountry = "DEU"\n\n(three letters, ISO 3166-1 alpha-3), or set SIMSPOOL_COUNTRY'


def country_of(config: Config) -> str | None:
    """Return the configured country in capital letters, None when there is none. Raises ConfigError for what is not three letters."""
    country = config.country
    if country is None:
        return None
    if not (len(country) == 3 and country.isascii() and country.isalpha()):
        where = config.sources.get("country", "the configuration")
        raise ConfigError(f'country {country!r} ({where}) is not three letters (ISO 3166-1 alpha-3), as "DEU" for Germany')
    return country.upper()


def emission_options(config: Config) -> dict[str, Any]:
    """Return what is recorded with a run whose emissions are to be measured.

    Raises ConfigError when neither the configuration nor a living agent of this spool knows the country.
    """
    country = country_of(config)
    if country is not None:
        return {WANTED: True, COUNTRY: country}
    if (living_agent(config.spool_dir) or {}).get("country"):
        return {WANTED: True}
    raise ConfigError(f"emissions cannot be measured without a country: {HOW_TO_SAY}")
