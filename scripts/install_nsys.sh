#!/usr/bin/env bash
# Puts Nsight Systems into DIR from the distribution's own packages; the system's apt sources stay as they are.
#
#   scripts/install_nsys.sh DIR
#
# The last line, and the only one on standard output, is the path of the nsys binary, DIR/bin/nsys. A DIR that
# holds a working one already is left alone. About 200 MB to download and 700 MB on disk.
#
# Debian 12 and later: 2023.4.4 from the non-free section of Debian 13.
# Ubuntu: nsight-systems from multiverse of the machine's own release, whatever its version. Never tried: there
# was no Ubuntu machine to try it on.
#
# Only the runtime libraries that are missing are installed on the system, with sudo when not root.
set -euo pipefail
export LC_ALL=C
exec 3>&1 1>&2 # everything but the result goes to standard error

debian_release=trixie
lib_dir=/usr/lib/x86_64-linux-gnu
# soname:package of what nsys, its importer and its exporter load from the system (measured on a minimal Debian 13:
# the graphics libraries that the package depends on are for its window only)
runtime_libs="libelf.so.1:libelf1 libssh.so.4:libssh-4 libpfm.so.4:libpfm4"

say() { echo "install_nsys.sh: $*"; }
die() {
    say "$*"
    exit 1
}

read_distribution() { # sets ID, VERSION_CODENAME; keyring, release, section
    [ "$(uname -m)" = x86_64 ] || die "only x86_64 is supported, this is $(uname -m): install Nsight Systems yourself"
    command -v apt-get >/dev/null || die "no apt-get here: install Nsight Systems yourself"
    ID="" VERSION_CODENAME=""
    # shellcheck source=/dev/null
    . /etc/os-release
    case $ID in
    debian) release=$debian_release section=non-free ;;
    ubuntu) release=$VERSION_CODENAME section=multiverse ;;
    *) die "only Debian and Ubuntu are supported, this is '$ID': install Nsight Systems yourself" ;;
    esac
    for keyring in "/usr/share/keyrings/$ID-archive-keyring".{gpg,pgp}; do
        [ -e "$keyring" ] && return
    done
    die "no $keyring: install the package $ID-keyring or $ID-archive-keyring"
}

missing_packages() {
    local known pair
    known=$(/sbin/ldconfig -p)
    for pair in $runtime_libs; do
        grep -q "[[:space:]]${pair%%:*} .*x86-64" <<<"$known" || echo "${pair##*:}"
    done
}

install_runtime_libs() {
    local packages sudo=()
    mapfile -t packages < <(missing_packages)
    [ ${#packages[@]} -eq 0 ] && return
    say "installing ${packages[*]}"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "not root and no sudo; as root run: apt-get install ${packages[*]}"
        sudo=(sudo)
    fi
    # Of scripts/lib.sh: apt-get does not wait for another one.
    sudo=(flock "${TMPDIR:-/tmp}/nvtxmoe-apt-$(id -u).lock" "${sudo[@]}")
    local install=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends)
    # A fresh machine has no package lists, or ones that have gone stale.
    "${install[@]}" "${packages[@]}" || { "${sudo[@]}" apt-get update -q && "${install[@]}" "${packages[@]}"; } ||
        die "could not install ${packages[*]}: see apt-get's messages above"
}

# The archives that the machine's own sources name for its release, most likely first. apt itself reads the
# sources, so both of their formats count, with options and several addresses an entry.
archives() {
    local all
    all=$(apt-get update --print-uris |
        sed -n "s,^'\(.*[^/]\)/*/dists/\([^/]*\)/InRelease' .*,\1 \2,p" |
        awk -v own="$VERSION_CODENAME" '
            $2 == own || $2 ~ /^(oldoldstable|oldstable|stable|testing|unstable|sid|trixie)$/ { print $1 }' | sort -u)
    grep "/$ID\$" <<<"$all" || true
    grep -v "/$ID\$" <<<"$all" || true
}

download_from() { # archive: both packages into $work/debs
    say "asking $1 for nsight-systems ($release $section)"
    echo "deb [signed-by=$keyring] $1 $release $section" >"$work/sources.list"
    local options=(-q -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update &&
        (cd "$work/debs" && apt-get "${options[@]}" download nsight-systems nsight-systems-target)
}

download() {
    local archive found=()
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs"
    mapfile -t found < <(archives)
    [ -n "${found[*]}" ] || die "apt's sources name no archive for $ID $VERSION_CODENAME"
    for archive in "${found[@]}"; do
        download_from "$archive" && return
    done
    die "none of apt's archives gave nsight-systems from $release $section: see apt-get's messages above"
}

unpack() {
    local deb lib
    for deb in "$work/debs"/*.deb; do
        dpkg -x "$deb" "$work/root" || die "could not unpack $deb into $dir: is the disk full?"
    done
    local host="$work/root/usr/lib/nsight-systems/host-linux-x64"
    [ -d "$host" ] || die "the packages of $ID $release hold no host-linux-x64: install Nsight Systems yourself"
    for lib in libssh.so libssh.so.4; do # they dangle outside of /usr
        ln -sfn "$lib_dir/libssh.so.4" "$host/$lib"
    done
    # nsys looks for its importer beside its target folder
    ln -sfn ../../nsight-systems/host-linux-x64 "$work/root$lib_dir/nsight-systems/host-linux-x64"
}

allow_recipes() { # nsys tree: its recipes refuse to start without a folder that the packages leave out; it may be empty
    local recipes="$1/target-linux-x64/python/packages/nsys_recipe"
    [ ! -d "$recipes" ] || mkdir -p "$recipes/third_party"
}

profile_and_export() { # nsys: a smallest report and its export
    rm -f "$work"/smoke.nsys-rep "$work"/smoke.qdstrm "$work"/smoke.sqlite
    "$1" profile -t nvtx -s none --cpuctxsw=none -o "$work/smoke" true &&
        "$1" export --type sqlite -o "$work/smoke.sqlite" "$work/smoke.nsys-rep" &&
        [ -s "$work/smoke.sqlite" ]
}

smoke_test() { # nsys: it must profile and export. 2023.4 sometimes loses its own agent, so one failure says little
    local attempt
    for attempt in 1 2 3; do
        profile_and_export "$1" >"$work/smoke.log" 2>&1 && return
        say "attempt $attempt of 3 to profile and export failed"
        cat "$work/smoke.log"
        sleep "$attempt"
    done
    die "the unpacked nsys cannot profile and export here: its messages are above"
}

publish() { # the unpacked tree goes to DIR in one move, the link to it last
    mkdir -p "$dir/bin"
    touch "$work/root/$mark"
    rm -rf "$dir/nsight-systems"
    mv "$work/root" "$dir/nsight-systems"
    ln -sfn "../nsight-systems$nsys_path" "$dir/bin/nsys"
}

case ${1:-} in
"" | -*) die "usage: scripts/install_nsys.sh DIR" ;;
esac
mkdir -p "$1" 2>/dev/null || die "cannot make $1: give a folder of your own"
[ -w "$1" ] || die "cannot write to $1: give a folder of your own"
dir=$(cd "$1" && pwd -P)
case $dir in
*[[:space:]]*) die "nsys cannot start its helpers from a path with spaces ($dir): give another folder" ;;
esac
mark=.unpacked-by-install_nsys
nsys_path=$lib_dir/nsight-systems/target-linux-x64/nsys
read_distribution
exec 9>"$dir/.install_nsys.lock"
flock 9 # a second run waits for the first and finds it done
install_runtime_libs
if ! "$dir/bin/nsys" --version >/dev/null 2>&1; then
    [ ! -e "$dir/nsight-systems" ] || [ -e "$dir/nsight-systems/$mark" ] ||
        die "$dir/nsight-systems is not of this script's making: give another folder"
    [ ! -e "$dir/bin/nsys" ] || [ -L "$dir/bin/nsys" ] ||
        die "$dir/bin/nsys does not work and is not of this script's making: give another folder"
    work=$(mktemp -d "$dir/.install_nsys.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    download
    unpack
    smoke_test "$work/root$nsys_path"
    publish
fi
[ ! -e "$dir/nsight-systems/$mark" ] || allow_recipes "$dir/nsight-systems$lib_dir/nsight-systems"
say "$("$dir/bin/nsys" --version)"
echo "$dir/bin/nsys" >&3
