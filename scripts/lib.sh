# What the set-up scripts share; they source it.

say() { echo "$(basename "$0"): $*" >&2; }
die() {
    say "$*"
    exit 1
}

find_python() { # names: $PYTHON, else the first of them that is a Python 3.10 to 3.13
    local name
    for name in ${PYTHON:-} "$@"; do
        # A name may be there without a Python behind it: it has to run.
        if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$name"
            return
        fi
        [ -z "${PYTHON:-}" ] || die "\$PYTHON is $PYTHON, which is no Python 3.10 to 3.13"
    done
}

need_python() { # names: as find_python; where there is none, the distribution's is installed
    local found
    found=$(find_python "$@")
    if [ -z "$found" ]; then
        apt_install python3 python3-venv
        found=$(find_python "$@")
        [ -n "$found" ] || die "no Python 3.10 to 3.13 found: install one, or name it in \$PYTHON"
    fi
    echo "$found"
}

apt_lock="${TMPDIR:-/tmp}/nvtxmoe-apt-$(id -u).lock" # scripts/test.sh runs several scripts at once; apt-get does not wait

apt_install() { # packages: from the distribution, as root or with sudo
    command -v apt-get >/dev/null || die "no apt-get here: install $* yourself"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "run as root: apt-get install $*"
        sudo=(sudo)
    fi
    say "installing $*"
    local locked=(flock "$apt_lock" "${sudo[@]}")
    "${locked[@]}" apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive "${locked[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
}
