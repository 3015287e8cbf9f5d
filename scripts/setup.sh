# Sourced by the scripts beside it, in the root of the repository: makes .venv and installs the project into it, with
# the extras named in $1. Does nothing when nothing that is built changed since it last ran.

setup() {
    local extras=${1:-} definitions stamp
    # every compiled module has its C definitions beside it
    definitions=$(find vhostuser -name '*.pxd' | sort)
    stamp="$extras $(cat pyproject.toml setup.py vhostuser/edition.py vhostuser/*/*.h $definitions ${definitions//.pxd/.py} | sha256sum)"
    [ "$(cat .venv/installed 2>/dev/null)" = "$stamp" ] && return

    if [ ! -x .venv/bin/python ]; then
        local missing=()
        python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
        # without these two the data path runs interpreted
        command -v gcc >/dev/null || missing+=(gcc libc6-dev)
        [ -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)/Python.h" ] || missing+=(python3-dev)
        if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ]; then
            echo "installing ${missing[*]}: to make .venv and to compile the data path"
            apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null
        fi
        echo "making .venv"
        python3 -m venv .venv
    fi
    echo "installing the project into .venv"
    .venv/bin/pip install --quiet --disable-pip-version-check --editable ".$extras"
    echo "$stamp" > .venv/installed
}
