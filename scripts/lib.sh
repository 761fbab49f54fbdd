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

apt_install() { # packages: from the distribution, as root or with sudo
    command -v apt-get >/dev/null || die "no apt-get here: install $* yourself"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "run as root: apt-get install $*"
        sudo=(sudo)
    fi
    say "installing $*"
    "${sudo[@]}" apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
}
