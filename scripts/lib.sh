# Sourced by the scripts beside it: where the project is, and a Python to make its .venv with.
# shellcheck shell=bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3.14 python3; do
        # Run, not only looked up: version managers put shims on the path that start nothing.
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=/path/to/python3" >&2
    return 1
}

# shellcheck disable=SC2034  # for the script that sources this
python=$(find_python)
# shellcheck disable=SC2034
venv_python=$root/.venv/bin/python
