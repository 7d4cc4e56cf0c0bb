"""Reads which package archives this machine trusts, from apt's own configuration.

Both formats of sources.list(5) are read: one-line (`*.list`) and deb822 (`*.sources`).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Distribution = Literal["debian", "ubuntu"]

# Releases that may carry what an older one lacks, oldest first.
_NEWER_SUITES: dict[Distribution, tuple[str, ...]] = {
    "debian": ("bookworm", "trixie", "forky"),
    "ubuntu": ("jammy", "noble", "questing", "resolute"),
}
_COMPONENTS: dict[Distribution, tuple[str, ...]] = {
    "debian": ("main",),
    "ubuntu": ("main", "universe"),
}
_SUITE_ALIASES = ("oldstable", "stable", "testing", "unstable", "sid", "devel")
_POCKETS = ("updates", "security")


@dataclass(frozen=True, slots=True, kw_only=True)
class AptSource:
    """One archive, one suite. `signed_by` is a keyring's path or an ASCII-armoured key."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Which distribution this is, from os-release(5)."""

    distribution: Distribution
    codename: str


def parse_one_line(text: str) -> Iterator[AptSource]:
    """Yield the binary archives of a `*.list` file; what cannot be read is passed over."""
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        matched = re.fullmatch(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+\S+)*)", line)
        if matched is None:
            continue
        options, uri, suite, components = matched.groups()
        signed_by = re.search(r"(?:^|\s)signed-by=(\S+)", options or "", re.IGNORECASE)
        yield AptSource(
            uri=uri,
            suite=suite,
            components=tuple(components.split()),
            signed_by=signed_by.group(1) if signed_by else None,
        )


def parse_deb822(text: str) -> Iterator[AptSource]:
    """Yield the binary archives of a `*.sources` file, one for each URI and suite."""
    for paragraph in re.split(r"\n(?:[ \t]*\n)+", text):
        fields = _fields(paragraph)
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").strip().lower() in {"no", "false", "off", "0"}:
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield AptSource(
                    uri=uri,
                    suite=suite,
                    components=tuple(fields.get("components", "").split()),
                    signed_by=fields.get("signed-by", "").strip() or None,
                )


def _fields(paragraph: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace():
            if name:
                fields[name] += "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def read_sources(folder: Path = Path("/etc/apt")) -> tuple[AptSource, ...]:
    """Return every binary archive that apt uses on this machine, in apt's order."""
    parts = sorted((folder / "sources.list.d").glob("*"))
    found: list[AptSource] = []
    for path in [folder / "sources.list", *parts]:
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".list":
            found.extend(parse_one_line(text))
        elif path.suffix == ".sources":
            found.extend(parse_deb822(text))
    return tuple(found)


def parse_os_release(text: str) -> Release | None:
    """Return the Debian or Ubuntu release that os-release(5) names, or None for any other."""
    pairs = (line.partition("=") for line in text.splitlines())
    fields = {name: value.strip().strip("\"'") for name, _, value in pairs}
    if codename := fields.get("UBUNTU_CODENAME"):
        return Release(distribution="ubuntu", codename=codename)
    family = {fields.get("ID", ""), *fields.get("ID_LIKE", "").split()}
    if "debian" in family:
        return Release(distribution="debian", codename=fields.get("VERSION_CODENAME", "sid"))
    return None


def distribution_sources(
    sources: Iterable[AptSource], release: Release, keyrings: Path = Path("/usr/share/keyrings")
) -> tuple[AptSource, ...]:
    """Return the distribution's own archive first, then its update and security pockets.

    Archives of third parties often carry the same suite name; they are told apart by their key
    and their path. Empty when the machine has no archive of its distribution.
    """
    keyring = str(keyrings / f"{release.distribution}-archive-keyring.gpg")
    own = [
        AptSource(
            uri=source.uri,
            suite=source.suite,
            components=_COMPONENTS[release.distribution],
            signed_by=source.signed_by or keyring,
        )
        for source in sources
        if "main" in source.components and _is_own(source, release.distribution)
    ]
    bases = (release.codename, *_SUITE_ALIASES)
    main = next((source for base in bases for source in own if source.suite == base), None)
    if main is None:
        return ()
    pockets = [f"{main.suite}-{pocket}" for pocket in _POCKETS]
    return (main, *(source for name in pockets for source in own if source.suite == name))


def _is_own(source: AptSource, distribution: Distribution) -> bool:
    if source.uri.startswith("cdrom:"):
        return False
    if source.signed_by is not None:
        return f"{distribution}-archive-" in source.signed_by
    return distribution in source.uri or (distribution == "ubuntu" and "ports" in source.uri)


def candidate_suites(own: str, release: Release) -> tuple[str, ...]:
    """Return the machine's own suite, then newer ones of the same distribution."""
    known = _NEWER_SUITES[release.distribution]
    if release.codename in known:
        return (own, *known[known.index(release.codename) + 1 :])
    return (own,)


def render(own: Iterable[AptSource], suite: str) -> str:
    """Return a deb822 file with the given archives moved to another suite, pockets included.

    Whatever the machine's own entry says, signatures are checked: no option that would switch the
    check off is taken over.
    """
    archives = list(own)
    base = archives[0].suite
    return "\n".join(_stanza(archive, suite + archive.suite[len(base) :]) for archive in archives)


def _stanza(archive: AptSource, suite: str) -> str:
    signed_by = (archive.signed_by or "").replace("\n", "\n ")
    return (
        f"Types: deb\nURIs: {archive.uri}\nSuites: {suite}\n"
        f"Components: {' '.join(archive.components)}\nSigned-By: {signed_by}\n"
    )
