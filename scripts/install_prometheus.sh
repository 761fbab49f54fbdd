#!/usr/bin/env bash
# Puts Prometheus and promtool into DIR from the distribution's own package, for the tests of live metrics; nothing is
# installed on the system.
#
#   scripts/install_prometheus.sh DIR
#
# The last line, and the only one on standard output, is the folder of the two binaries, DIR/usr/bin. A DIR that holds
# working ones already is left alone. About 20 MB to download and 180 MB on disk. Debian and Ubuntu on x86_64 or arm64.
set -euo pipefail
export LC_ALL=C
exec 3>&1 1>&2 # everything but the result goes to standard error

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

case ${1:-} in
"" | -*) die "usage: scripts/install_prometheus.sh DIR" ;;
esac
mkdir -p "$1" || die "cannot make $1: give a folder of your own"
dir=$(cd "$1" && pwd -P)
exec 9>"$dir/.install_prometheus.lock"
flock 9 # a second run waits for the first and finds it done
if ! "$dir/usr/bin/promtool" --version >/dev/null 2>&1; then
    command -v apt-get >/dev/null || die "no apt-get here: put prometheus and promtool into $dir/usr/bin yourself"
    work=$(mktemp -d "$dir/.install_prometheus.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs"
    # Lists of our own, from the machine's own sources: the system's may be stale, and stay as they are.
    options=(-q -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
    (cd "$work/debs" && apt-get -q -o APT::Sandbox::User=root download prometheus) ||
        { apt-get "${options[@]}" update && (cd "$work/debs" && apt-get "${options[@]}" download prometheus); } ||
        die "apt's archives gave no package prometheus: see apt-get's messages above"
    dpkg -x "$work/debs"/*.deb "$work/root" || die "could not unpack it into $dir: is the disk full?"
    "$work/root/usr/bin/promtool" --version >/dev/null || die "the unpacked promtool does not run here"
    rm -rf "$dir/usr"
    mv "$work/root/usr" "$dir/usr"
fi
say "$("$dir/usr/bin/promtool" --version | head -n 1)"
echo "$dir/usr/bin" >&3
