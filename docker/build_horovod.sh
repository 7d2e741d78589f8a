#!/usr/bin/env bash
# Builds Horovod 0.28.1 against the torch of a Python environment, and installs it there. For the CPU, with gloo.
#   docker/build_horovod.sh [PYTHON]        default: .venv/bin/python; `make horovod` and docker/Dockerfile call it
#   JOBS=2                                  compilers at once; about 9 CPU minutes in all
# The wheel fits one torch and one Python only: it is kept, named after both, in ~/.cache/bigtrain/horovod, and the next
# environment takes it from there. Safe to run again.
set -euo pipefail

PYTHON=${1:-.venv/bin/python}
VERSION=0.28.1
SHA256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/bigtrain/horovod
JOBS=${JOBS:-$(nproc)}

say() { echo "[${SECONDS}s] $*"; }
fail() { echo "horovod: $*" >&2; exit 2; }
pip() { "$PYTHON" -m pip --disable-pip-version-check -q "$@"; }
# Importing is not enough: horovod.torch hides that its native library is missing, and only a sum proves it.
works() {
  (cd / && env -u RANK -u WORLD_SIZE HOROVOD_LOG_LEVEL=error "$PYTHON" -c '
import horovod.torch as hvd, torch
hvd.init()
assert hvd.gloo_built() and hvd.allreduce(torch.ones(2), op=hvd.Sum).sum() == 2')
}

command -v "$PYTHON" >/dev/null || fail "there is no $PYTHON: run \`make train\` first, or name another Python"
PYTHON=$(realpath -s "$(command -v "$PYTHON")")
torch=$("$PYTHON" -c 'import torch; print(torch.__version__.replace("+", "."))' 2>/dev/null) ||
  fail "$PYTHON has no torch: install bigtrain first"
python=$("$PYTHON" -c 'import sys; print(f"cp{sys.version_info.major}{sys.version_info.minor}")')
wanted=$VERSION+torch$torch

installed=$("$PYTHON" -c 'from importlib.metadata import version; print(version("horovod"))' 2>/dev/null || true)
if [ "$installed" = "$wanted" ] && works 2>/dev/null; then
  say "horovod $wanted is installed, and works"
  exit 0
fi

# setuptools also at run time: it gives Python 3.12 the distutils that Horovod imports; numpy it needs undeclared.
say "installing what Horovod needs: setuptools, wheel, packaging, cffi, cloudpickle, psutil, pyyaml, numpy"
pip install setuptools wheel packaging cffi cloudpickle psutil pyyaml numpy

wheels() { find "$CACHE" -name "horovod-$wanted-$python-*.whl" 2>/dev/null; }
if [ -z "$(wheels)" ]; then
  command -v g++ >/dev/null || fail "no C++ compiler: apt-get install build-essential"
  [ -e "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
    fail "no headers of Python: apt-get install python3-dev"
  PATH=$(dirname "$PYTHON"):$PATH
  command -v cmake >/dev/null || pip install 'cmake>=3.13'

  work=$(mktemp -d)
  say "downloading Horovod $VERSION from PyPI"
  pip download --no-deps --no-build-isolation --no-binary horovod -d "$work" "horovod==$VERSION"
  echo "$SHA256  $work/horovod-$VERSION.tar.gz" | sha256sum -c --quiet || fail "the download has another checksum"
  tar -xzf "$work/horovod-$VERSION.tar.gz" -C "$work"
  source=$work/horovod-$VERSION

  # It asks for C++14 in two places; torch's header says which standard it wants.
  include=$("$PYTHON" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')/include
  standard=$(grep -ohE 'error C\+\+[0-9]+ or later' "$include/ATen/ATen.h" | grep -oE '[0-9]+' | head -1 || true)
  standard=${standard:-17}
  for file in CMakeLists.txt horovod/torch/CMakeLists.txt; do
    sed -i -E "s/^( *set\(CMAKE_CXX_STANDARD) 14\)/\1 $standard)/" "$source/$file"
    grep -q "^ *set(CMAKE_CXX_STANDARD $standard)" "$source/$file" || fail "the patch does not fit $file"
  done
  # A torch for CUDA, and any nvcc on the path: it would demand a whole CUDA toolkit.
  sed -i 's/(torch\.version\.cuda is not None)/False/' "$source/cmake/Modules/FindPytorch.cmake"
  grep -q 'True if (False and' "$source/cmake/Modules/FindPytorch.cmake" || fail "the patch does not fit FindPytorch.cmake"

  say "compiling against torch $torch with C++$standard, $JOBS at once; the log: $work/build.log"
  mkdir -p "$CACHE"
  export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
  export HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_LOCAL_VERSION=torch$torch
  export MAKEFLAGS=-j$JOBS CMAKE_POLICY_VERSION_MINIMUM=3.5 CXXFLAGS="-g0 -w ${CXXFLAGS:-}" # gloo asks for CMake 2.8
  "$PYTHON" -m pip --disable-pip-version-check wheel -v --no-deps --no-build-isolation --no-cache-dir \
    -w "$work/wheels" "$source" >"$work/build.log" 2>&1 ||
    { tail -n 40 "$work/build.log" >&2; fail "the build failed: $work/build.log"; }
  mv "$work"/wheels/*.whl "$CACHE"
  rm -rf "$work"
fi

say "installing $(wheels)"
pip install --no-deps --force-reinstall "$(wheels)"
works || fail "it is installed, and does not work: remove $(wheels) and run this again"
say "horovod $wanted works"
