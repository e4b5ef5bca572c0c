"""Names that people gave, as names of files: readable, and unable to lead anywhere else or to trouble any file system."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_ODD = frozenset('<>:"\\|?*/')
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)")
LONGEST = 120  # bytes: there is room for a suffix in the 143 that the strictest file systems leave
_DEEPEST = 16


def file_name(text: str) -> str:
    """Return a name for one file or folder: what is odd in it becomes `_`; what is too long is cut, and ends in a digest of the whole."""
    value = unicodedata.normalize("NFC", text)
    value = "".join("_" if c in _ODD or unicodedata.category(c) in _UNSEEN else c for c in value)
    value = value.strip(" ").rstrip(".")
    if not value or value[0] in ".-~" or _DEVICE.match(value):
        value = f"_{value}"
    raw = value.encode()
    if len(raw) <= LONGEST:
        return value
    stem, dot, ending = value.rpartition(".")
    kept = f".{ending}" if dot and stem and len(ending.encode()) <= 10 else ""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return raw[: LONGEST - 9 - len(kept.encode())].decode(errors="ignore") + "~" + digest + kept


def file_path(text: str) -> list[str]:
    """Return the folders and the name that a name with slashes means; `.` and empty parts are left out, and no part leads upwards."""
    parts = [file_name(part) for part in text.split("/") if part not in {"", "."}]
    if len(parts) > _DEEPEST:
        parts = [*parts[: _DEEPEST - 1], file_name("_".join(parts[_DEEPEST - 1 :]))]
    return parts or ["_"]


def suffixed(name: str, suffix: str) -> str:
    """Return a name with a suffix before its ending."""
    stem, dot, ending = name.rpartition(".")
    return f"{stem}~{suffix}.{ending}" if dot and stem else f"{name}~{suffix}"
