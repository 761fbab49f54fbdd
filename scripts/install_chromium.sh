#!/usr/bin/env bash
# Chromium and its driver from the distribution's packages, for the tests that open a report in a real browser.
#
#   scripts/install_chromium.sh
#
# The last line, and the only one on standard output, is the path of the browser. Nothing is done where both are there.
# Debian 11 and later: as root, or with sudo; about 400 MB on disk. Not Ubuntu: its package is a snap, which containers do
# not run. Install Chromium and chromedriver yourself there, and name them in NVTXMOE_TEST_CHROMIUM and
# NVTXMOE_TEST_CHROMEDRIVER; or leave these tests out: scripts/test.sh -m "not browser" needs neither.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=scripts/lib.sh
. scripts/lib.sh

browser=${NVTXMOE_TEST_CHROMIUM:-/usr/bin/chromium}
driver=${NVTXMOE_TEST_CHROMEDRIVER:-/usr/bin/chromedriver}
if [ ! -x "$browser" ] || [ ! -x "$driver" ]; then
    [ -z "${NVTXMOE_TEST_CHROMIUM:-}${NVTXMOE_TEST_CHROMEDRIVER:-}" ] || die "no $browser or no $driver, which you named"
    # shellcheck source=/dev/null
    [ "$(. /etc/os-release && echo "${ID:-}")" = debian ] ||
        die "only Debian is supported: install Chromium and chromedriver, name them in NVTXMOE_TEST_CHROMIUM and" \
            "NVTXMOE_TEST_CHROMEDRIVER; or leave out the tests that need them: scripts/test.sh -m 'not browser'"
    apt_install chromium chromium-driver
fi
"$driver" --version >&2 || die "$driver does not run"
echo "$browser"
