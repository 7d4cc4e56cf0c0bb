#!/bin/sh
# Makes .venv from the locked requirements, or does nothing when it is up to date.
#
# Usage: tools/bootstrap_environment.sh run|dev
# Needs CPython 3.11 or newer, nothing else: pip is taken from the interpreter, or else from the
# distribution's own package. The user's configuration of pip (index, certificates) holds.
# PYTHON names the interpreter to use.
set -eu

cd "$(dirname "$0")/.."
checkout=$(pwd -P)
group=${1:?run or dev}
lock=requirements/$group.txt
venv=.venv

fail() {
    echo "fleetmeter: $*" >&2
    exit 1
}

# What the environment was made from: the lock, what is installed from it, and where it lies.
fingerprint() {
    { cat "requirements/$1.txt" pyproject.toml "$0"; echo "$checkout"; } | cksum
}

is_current() {
    [ -f "$venv/.made-from-$1" ] && [ "$(cat "$venv/.made-from-$1")" = "$(fingerprint "$1")" ] &&
        "$venv/bin/python" -c '' 2>/dev/null
}

if is_current "$group" || { [ "$group" = run ] && is_current dev; }; then
    exit 0
fi

# A name on PATH says little: shims exist that only complain. So each candidate is run.
is_python() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_python "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for name in python3.13 python3.12 python3.11 python3 python3.14; do
        if is_python "$name"; then
            echo "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python3"
}

# A Python without ensurepip (Debian without python3-venv): the distribution's pip, unpacked into a
# folder of ours. apt checks its signature; nothing needs root. Prints the path of pip's wheel.
distribution_pip() {
    for wheel in /usr/share/python-wheels/pip-*.whl; do
        if [ -f "$wheel" ]; then
            echo "$wheel"
            return
        fi
    done
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 ||
        fail "this Python has no pip and no ensurepip: install python3-venv"
    apt=$checkout/$venv/apt
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$apt/root"
    : >"$apt/status"
    cat >"$apt/apt.conf" <<END
#clear APT::Update;
#clear DPkg;
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Debug::NoLocking "1";
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
END
    # Some other archive of this machine may be out of order; what counts is whether pip arrives.
    apt-get -c "$apt/apt.conf" -qq update >"$apt/log" 2>&1 || true
    (cd "$apt" && apt-get -c "$apt/apt.conf" -qq download python3-pip-whl >>log 2>&1) || {
        tail -n 5 "$apt/log" >&2
        fail "this Python has no pip and no ensurepip: install python3-venv"
    }
    dpkg-deb -x "$apt"/python3-pip-whl_*.deb "$apt/root"
    echo "$apt"/root/usr/share/python-wheels/pip-*.whl
}

python=$(find_python)
if [ -d "$venv" ] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
fi
# A virtual environment holds paths: one that was moved here with its checkout is made anew.
if [ -f "$venv/.made-in" ] && [ "$(cat "$venv/.made-in")" != "$checkout" ]; then
    rm -rf "$venv"
fi
if [ ! -d "$venv" ]; then
    echo "making .venv with $("$python" --version 2>&1)"
    if "$python" -c 'import ensurepip' 2>/dev/null && "$python" -m venv "$venv" >/dev/null 2>&1; then
        :
    else
        rm -rf "$venv"
        "$python" -m venv --without-pip "$venv" || fail "$python cannot make a virtual environment"
        wheel=$(distribution_pip)
        "$venv/bin/python" "$wheel/pip" install --quiet --disable-pip-version-check \
            --no-deps --no-index --ignore-installed "$wheel"
        rm -rf "$venv/apt"
    fi
    echo "$checkout" >"$venv/.made-in"
fi

echo "installing $lock"
rm -f "$venv"/.made-from-*
pip="$venv/bin/python -m pip --disable-pip-version-check"
count=$(grep -c '^[a-zA-Z0-9].*==' "$lock")
# pip names each package as it comes to it; sh has no pipefail, so its failure is left in a file.
{
    $pip install --progress-bar off --require-hashes --only-binary :all: -r "$lock" ||
        touch "$venv/.failed"
} | awk -v count="$count" '
    /^(Collecting|Requirement already|Ignoring) / { seen++; if (seen % 10 == 0) {
        printf "  %d of %d packages\n", seen, count; fflush() } }
    /^Installing collected/ { print "  unpacking them"; fflush() }'
if [ -e "$venv/.failed" ]; then
    rm "$venv/.failed"
    fail "not everything in $lock could be installed; pip says why above"
fi
$pip install --quiet --no-deps --no-build-isolation -e .
fingerprint "$group" >"$venv/.made-from-$group"
