"""What the stack makes of apt's sources: both formats, whose archive it is, which suite next."""

from pathlib import Path

import pytest

from metering.stack.sources import (
    AptSource,
    Release,
    candidate_suites,
    distribution_sources,
    parse_deb822,
    parse_one_line,
    parse_os_release,
    read_sources,
    render,
)

BOOKWORM = Release(distribution="debian", codename="bookworm")
NOBLE = Release(distribution="ubuntu", codename="noble")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def source(
    suite: str, *, uri: str = "http://mirror.test/debian", key: str | None = None
) -> AptSource:
    return AptSource(uri=uri, suite=suite, components=("main",), signed_by=key)


def test_one_line_format() -> None:
    text = """\
# deb http://mirror.test/debian sid main
deb http://mirror.test/debian bookworm main contrib  # with a remark
deb-src http://mirror.test/debian bookworm main
deb [ arch=amd64 signed-by=/k.gpg ] http://mirror.test/debian bookworm-updates main
deb [trusted=yes] http://flat.test/ ./
nonsense
"""
    assert list(parse_one_line(text)) == [
        AptSource(
            uri="http://mirror.test/debian", suite="bookworm", components=("main", "contrib")
        ),
        source("bookworm-updates", key="/k.gpg"),
        AptSource(uri="http://flat.test/", suite="./", components=()),
    ]


def test_deb822_format_multiplies_uris_and_suites() -> None:
    text = f"""\
# a remark
Types: deb deb-src
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
# a remark within
Components: main
Signed-By: {KEYRING}

Types: deb-src
URIs: http://mirror.test/debian
Suites: bookworm
Components: main

enabled: no
types: deb
uris: http://mirror.test/debian
suites: sid
components: main
"""
    assert list(parse_deb822(text)) == [
        source("bookworm", key=KEYRING),
        source("bookworm-updates", key=KEYRING),
    ]


def test_deb822_key_in_place_goes_through_unharmed() -> None:
    text = """\
Types: deb
URIs: http://mirror.test/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
"""
    (found,) = parse_deb822(text)
    assert found.signed_by is not None
    assert found.signed_by.splitlines()[1:3] == [".", "mQINBF"]
    assert list(parse_deb822(render([found], "bookworm"))) == [found]


def test_files_are_read_by_their_suffix(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.test/debian bookworm main\n")
    (parts / "b.list").write_text("deb http://b.test/debian bookworm main\n")
    (parts / "c.sources").write_text(
        "Types: deb\nURIs: http://c.test/debian\nSuites: bookworm\nComponents: main\n"
    )
    (parts / "d.list.save").write_text("deb http://d.test/debian bookworm main\n")
    uris = [found.uri for found in read_sources(tmp_path)]
    assert uris == ["http://a.test/debian", "http://b.test/debian", "http://c.test/debian"]
    assert read_sources(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nVERSION_CODENAME="bookworm"\n', BOOKWORM),
        ("ID=ubuntu\nID_LIKE=debian\nUBUNTU_CODENAME=noble\n", NOBLE),
        ("ID=linuxmint\nID_LIKE='ubuntu debian'\nUBUNTU_CODENAME=noble\n", NOBLE),
        ("ID=debian\n", Release(distribution="debian", codename="sid")),
        ("ID=fedora\nVERSION_CODENAME=\n", None),
    ],
)
def test_os_release(text: str, expected: Release | None) -> None:
    assert parse_os_release(text) == expected


def test_own_archive_is_told_from_third_parties() -> None:
    sources = [
        source("bookworm", uri="https://vendor.test/apt"),
        source("bookworm", uri="https://vendor.test/debian", key="/etc/apt/keyrings/vendor.gpg"),
        source("bookworm-security", uri="http://mirror.test/debian-security", key=KEYRING),
        source("bookworm", key=KEYRING),
        source("bookworm-backports", key=KEYRING),
        source("bookworm-updates"),
    ]
    found = distribution_sources(sources, BOOKWORM)
    assert [one.suite for one in found] == ["bookworm", "bookworm-updates", "bookworm-security"]
    assert {one.signed_by for one in found} == {KEYRING}
    assert found[2].uri == "http://mirror.test/debian-security"


def test_suite_alias_and_no_archive() -> None:
    (found,) = distribution_sources([source("stable")], BOOKWORM)
    assert found.suite == "stable"
    assert distribution_sources([source("jessie")], BOOKWORM) == ()
    assert distribution_sources([source("bookworm", uri="cdrom:[Debian]/")], BOOKWORM) == ()


def test_ubuntu_takes_universe() -> None:
    (found,) = distribution_sources([source("noble", uri="http://mirror.test/ubuntu/")], NOBLE)
    assert found.components == ("main", "universe")
    assert found.signed_by == "/usr/share/keyrings/ubuntu-archive-keyring.gpg"


def test_newer_suites_follow_the_own_one() -> None:
    assert candidate_suites("bookworm", BOOKWORM) == ("bookworm", "trixie", "forky")
    assert candidate_suites("oldstable", BOOKWORM) == ("oldstable", "trixie", "forky")
    assert candidate_suites("sid", Release(distribution="debian", codename="sid")) == ("sid",)


def test_pockets_move_with_the_suite_and_the_check_of_signatures_stays() -> None:
    own = [source("bookworm", key=KEYRING), source("bookworm-security", key=KEYRING)]
    text = render(own, "trixie")
    assert [one.suite for one in parse_deb822(text)] == ["trixie", "trixie-security"]
    assert text.count(f"Signed-By: {KEYRING}") == 2
    assert "rusted" not in text
