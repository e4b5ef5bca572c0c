"""What a script is told when it asks for emissions: the line to add where no country is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simspool.sdk import ConfigError, Run
from simspool.sdk.config import load_config
from simspool.spool import Spool


def _options(run: Run) -> dict[str, object]:
    return {k: v for k, v in run._options.items() if "emission" in k}


def test_without_a_country_the_line_to_add_is_given_and_nothing_is_set(spool: Spool) -> None:
    run = Run()
    with pytest.raises(ConfigError) as told:
        run.config(enable_emission_metrics=True)
    assert '\n[emissions]\ncountry = "DEU"\n' in str(told.value)
    assert "simspool.toml" in str(told.value)
    assert "SIMSPOOL_COUNTRY" in str(told.value)
    assert _options(run) == {}


def test_the_line_that_is_given_works(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "simspool.toml").write_text('[emissions]\ncountry = "fra"\n')
    run = Run()
    assert run.config(enable_emission_metrics=True)
    assert _options(run) == {"enable_emission_metrics": True, "emissions_country": "FRA"}
    assert load_config().country == "fra"


@pytest.mark.parametrize("country", ["DE", "Germany", "D3U", "ÄÖÜ"])
def test_what_is_not_three_letters_is_refused_by_name(spool: Spool, monkeypatch: pytest.MonkeyPatch, country: str) -> None:
    monkeypatch.setenv("SIMSPOOL_COUNTRY", country)
    with pytest.raises(ConfigError, match=rf"country '{country}' \(SIMSPOOL_COUNTRY\) is not three letters"):
        Run().config(enable_emission_metrics=True)
    done = subprocess.run([sys.executable, "-m", "simspool.agent", "run"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert country in done.stderr


def test_a_disabled_run_and_one_that_does_not_ask_need_none(spool: Spool) -> None:
    assert Run(mode="disabled").config(enable_emission_metrics=True)
    assert Run().config(enable_emission_metrics=False)


def test_suppressed_errors_make_it_dormant(spool: Spool, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run()
    run.config(suppress_errors=True)
    assert not run.config(enable_emission_metrics=True)
    assert "[emissions]" in capsys.readouterr().err


def test_without_an_agent_the_closing_line_says_that_nobody_measures(spool: Spool, script: Callable[..., object]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from simspool.sdk import Run\nr = Run()\nr.config(enable_emission_metrics=True)\nr.init('a')\nr.close()"],
        env={"SIMSPOOL_COUNTRY": "DEU", "SIMSPOOL_AGENT": "off", "SIMSPOOL_DIR": spool.path, "HOME": str(Path.cwd())},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "emissions are measured by an agent, and none serves this spool" in done.stderr
