# Sourced by the commands in this directory: `. _setup.sh LEVEL`, where LEVEL is `run` (what iii-broker needs) or
# `dev` (tests, checks and benchmark too). Leaves $root, the top of the clone, with its .venv ready.
#
# Nearly always a stamp says that all is done, and no program is started to find out. Otherwise the first Python
# that will do runs _setup.py, which makes or mends .venv under a lock. All of that talks on stderr only and leaves
# stdin alone: both belong to the command. 125 is the exit status of a failed set-up: no command uses it itself.
# With compiling=1 set, what bin/compile made before may be older than its sources.

root=${BASH_SOURCE[0]%/bin/*}

# A stamp is the interpreter's real path, the clone's path, setup.cfg and pyproject.toml, as _setup.py wrote them.
# PYTHON may name another interpreter than the one .venv was made with: that is for _setup.py to find out.
setup_is_fresh() {
    local stamp=$root/.venv/.setup-$1 made
    [[ -z ${PYTHON:-} && -r $stamp ]] || return 1
    made=$(<"$stamp")
    [[ $root/.venv/bin/python -ef ${made%%$'\n'*} ]] || return 1
    [[ ${made#*$'\n'} == "$root"$'\n'"$(<"$root/setup.cfg")"$'\n'"$(<"$root/pyproject.toml")" ]]
}

# Prints the first Python that can make an environment, or says on stderr why there is none. The probe is written
# for any Python there ever was.
setup_find_python() {
    local candidate candidates version old='' bare=''
    local probe='import sys
print("%d.%d" % sys.version_info[:2])
if sys.version_info < (3, 10): sys.exit(10)
try: import ensurepip, venv
except ImportError: sys.exit(11)'

    if [[ -n ${PYTHON:-} ]]; then
        candidates=("$PYTHON")
    else
        candidates=(python3 python3.{14,13,12,11,10})
        # An environment that needs mending is mended by its own Python.
        [[ -f $root/.venv/pyvenv.cfg ]] && candidates=("$root/.venv/bin/python" "${candidates[@]}")
    fi
    for candidate in "${candidates[@]}"; do
        version=$("$candidate" -c "$probe" 2>/dev/null </dev/null) && { echo "$candidate"; return; }
        case $? in
            10) old=${old:-$candidate is $version} ;;
            11) bare=${bare:-$version} ;;
        esac
    done

    if [[ -n $bare ]]; then
        echo "iii_zmq: Python $bare lacks its venv module: install it (Debian, Ubuntu: apt install python$bare-venv)"
    elif [[ -n $old ]]; then
        echo "iii_zmq: Python 3.10 or later is needed, and $old; PYTHON=/path/to/python names another"
    else
        echo "iii_zmq: Python 3.10 or later is needed, and ${PYTHON:-python3} does not run; PYTHON=/path/to/python names one"
    fi >&2
    return 1
}

# What bin/compile made is imported instead of its source, also of one that was changed since.
setup_is_compiled_anew() {
    local made source
    for made in "$root"/iii_zmq/{,wire/,{core,io}/{,*/}}*.so; do
        source=${made##*/}
        source=${made%/*}/${source%%.*}.py
        [[ $source -nt $made ]] || continue
        echo "iii_zmq: ${source#"$root"/} changed after it was compiled: bin/compile, or bin/compile --remove" >&2
        return 1
    done
}

[[ ${compiling:-} ]] || setup_is_compiled_anew || exit 125
if ! setup_is_fresh "$1"; then
    setup_python=$(setup_find_python) || exit 125
    "$setup_python" "$root/bin/_setup.py" "$1" </dev/null >&2 || exit
fi
