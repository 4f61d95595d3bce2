#!/usr/bin/env bash
# Sets up what is missing: the headers of Berkeley DB and of Python and a compiler, by the system's package manager; the
# virtual environment .venv; in it this project and what it needs. Does nothing when everything is there.
#
#   scripts/setup.sh [run|dev|bench]     run (the default): what the demo needs; dev: what the tests and checks need,
#                                        too; bench: the peers that the benchmarks measure, too, as far as they can be had
#
# In the environment, PYTHON: the interpreter, 3.10 or later, python3 by default; BERKELEYDB_DIR: where Berkeley DB is, if
# not where the system has it.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:-run}
python=${PYTHON:-python3}
venv=.venv
stamp=$venv/.set-up
log=$venv/set-up.log

say() { printf 'set-up: %s\n' "$*"; }
fail() {
    printf 'set-up: %s\n' "$*" >&2
    exit 1
}

# Version and place of an interpreter: the same inside a virtual environment that was made from it.
identity() {
    "$1" -I -c 'import sys; print("%d.%d.%d" % sys.version_info[:3], sys.base_prefix); sys.exit(sys.version_info < (3, 10))'
}

# All that an environment depends on: when it changes, the environment is set up again.
state() {
    printf '%s\n%s\n%s\n' "$1" "$PWD" "$interpreter"
    cat pyproject.toml setup.py scripts/setup.sh
}

is_fresh() {
    [ -x $venv/bin/python ] && state "$1" | cmp -s - "$stamp.$1"
}

# Durus and berkeleydb come as source only: they need a compiler, and the headers of Python and of Berkeley DB.
missing_things() {
    "$python" -I -c 'import ensurepip, venv' 2>/dev/null || echo venv
    command -v cc >/dev/null || command -v gcc >/dev/null || echo compiler
    "$python" -I -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        echo python-headers
    has_berkeley_db || echo berkeley-db
}

has_berkeley_db() {
    [ -n "${BERKELEYDB_DIR:-}${BERKELEYDB_INCDIR:-}" ] && return
    local directory
    for directory in /usr/include /usr/local/include /usr/include/db5 /usr/include/db53 /opt/local/include/db53; do
        [ -e "$directory/db.h" ] && return
    done
    return 1
}

package() {
    local series=${interpreter%% *}
    series=${series%.*}
    case $1/$2 in
        apt-get/venv) echo "python$series-venv" ;;
        apt-get/compiler) echo "gcc libc6-dev" ;;
        apt-get/python-headers) echo "python$series-dev" ;;
        apt-get/berkeley-db) echo libdb5.3-dev ;;
        dnf/compiler) echo gcc ;;
        dnf/python-headers) echo python3-devel ;;
        dnf/berkeley-db) echo libdb-devel ;;
        brew/berkeley-db) echo berkeley-db@5 ;;
    esac
}

manager() {
    local name
    for name in apt-get dnf brew; do
        if command -v $name >/dev/null; then
            echo $name
            return
        fi
    done
}

# $*: what is missing, of the words that missing_things prints.
install_packages() {
    local manager thing name names='' sudo=''
    manager=$(manager)
    for thing in "$@"; do
        name=$(package "$manager" "$thing")
        [ -n "$name" ] || fail "missing: $*. Needed are a C compiler, Python's headers and its venv module, and Berkeley DB
5.3 with its header db.h: install them, and try again; if db.h is in an unusual place, name it with BERKELEYDB_DIR=…"
        names="$names $name"
    done
    names=${names# }
    if [ "$manager" != brew ] && [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null || { ! sudo -n true 2>/dev/null && [ ! -t 0 ]; }; then
            fail "packages are missing, and only root may install them. As root:
    $manager install $names
and then try again"
        fi
        sudo=sudo
    fi
    say "installing $names ($manager)"
    # shellcheck disable=SC2086 # both are lists of words
    case $manager in
        apt-get)
            $sudo apt-get update -qq || say "apt-get update failed: going on with the lists that there are"
            $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $names >/dev/null
            ;;
        dnf) $sudo dnf install -y -q $names ;;
        brew) brew install --quiet $names ;;
    esac || fail "$manager could not install $names"
}

# The compiler does not look where Homebrew puts Berkeley DB.
use_homebrew() {
    local prefix
    if [ -z "${BERKELEYDB_DIR:-}" ] && prefix=$(brew --prefix berkeley-db@5 2>/dev/null) && [ -e "$prefix/include/db.h" ]; then
        export BERKELEYDB_DIR=$prefix
    fi
}

prepare_system() {
    local missing
    use_homebrew
    missing=$(missing_things)
    if [ -n "$missing" ]; then
        # shellcheck disable=SC2086 # it is a list of words
        install_packages $missing
        use_homebrew
        missing=$(missing_things)
        # shellcheck disable=SC2086,SC2116 # on one line
        [ -z "$missing" ] || fail "still missing after that: $(echo $missing)"
    fi
}

make_environment() {
    if [ -x $venv/bin/python ] && [ "$(identity $venv/bin/python 2>/dev/null)" = "$interpreter" ] &&
        $venv/bin/python -I -m pip --version >/dev/null 2>&1; then
        return
    fi
    say "making the virtual environment $venv with Python $interpreter"
    "$python" -m venv --clear $venv
}

install() {
    $venv/bin/python -m pip install --disable-pip-version-check --no-input "$@" >>"$log" 2>&1 </dev/null
}

# $1: what is to be there afterwards; the others that were are there still.
install_project() {
    local what=. others='' each
    [ "$1" = run ] || what=".[$1]"
    for each in run dev bench; do
        if is_fresh $each; then others="$others $each"; fi
    done
    say "installing the project and what it needs, which compiles two modules the first time: pip install -e '$what'"
    rm -f "$stamp".*
    : >"$log"
    if ! install -e "$what"; then
        if [ "$1" = bench ] && install -e .; then
            install_one_by_one "$1"
        else
            tail -n 25 "$log" >&2
            fail "pip failed; above is the end of what it said, all of it is in $log"
        fi
    fi
    for each in run "$1" $others; do
        state "$each" >"$stamp.$each"
    done
}

# Together they cannot be installed: whoever can be is measured.
install_one_by_one() {
    local requirement missing=''
    while read -r requirement; do
        install "$requirement" || missing="$missing, ${requirement%%[<>=!~ ]*}"
    done < <(requirements "$1")
    if [ -n "$missing" ]; then
        say "the benchmarks go without what could not be installed: ${missing#, }"
        say "why is in $log; to try again: rm $stamp.$1"
    fi
}

# What an extra of the project asks for here, a line each.
requirements() {
    $venv/bin/python - "$1" <<'END'
import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

for found in map(Requirement, requires("durus-berkeleydbstorage")):
    if found.marker and found.marker.evaluate({"extra": sys.argv[1]}) and not found.marker.evaluate({"extra": ""}):
        print(found.name, found.specifier, sep="")
END
}

case $extras in run | dev | bench) ;; *) fail "scripts/setup.sh takes run, dev or bench, not $extras" ;; esac
command -v "$python" >/dev/null || fail "there is no $python: install Python 3.10 or later, or name it with PYTHON=…"
interpreter=$(identity "$python" 2>/dev/null) ||
    fail "$python is not Python 3.10 or later (${interpreter%% *}): name one with PYTHON=…"
is_fresh "$extras" && exit 0
started=$SECONDS
python=$("$python" -I -c 'import sys; print(sys._base_executable)')
prepare_system
make_environment
install_project "$extras"
say "done in $((SECONDS - started)) s"
