# `make` is lint and test; `make help` lists the rest. Every target sets up what it needs, in .venv.

PYTHON ?= python3
PREFIX ?= /usr/local
DESTDIR ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.NOTPARALLEL:

BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
# Training jobs import these, and are older than daemons: the rows that pyproject.toml gives ruff.
PY39 := $(shell sed -n 's|^"\(ckptd/[^"*]*[^"*/]\).*" = "py39"$$|\1|p' pyproject.toml)
# What tests/root needs of Debian: strace injects faults, xfsprogs and e2fsprogs make the file systems
# whose power is cut, sshfs lists a directory once for each descriptor, the others run a systemd of our own.
ROOT_PACKAGES := strace xfsprogs sshfs openssh-sftp-server systemd dbus e2fsprogs util-linux procps
# What tests/field needs of Debian: a Slurm of one node.
FIELD_PACKAGES := munge slurmctld slurmd slurm-client

.PHONY: all test coverage lint format soak real bench root field smoke smoke-39 demo picture install uninstall clean help check-python check-root
all: lint test

test: .venv/.test  ## the tests that need neither root nor other frameworks; in memory, or below TMPDIR
	$(BIN)/python -m pytest $(ARGS)

coverage: .venv/.test  ## how much of ckptd those reach, counted in the processes that they start too; there is a floor
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: .venv/.lint  ## ruff, mypy, and nothing newer than Python 3.9 in what jobs import
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vermin --quiet --violations --no-tips --target=3.9- $(wildcard $(PY39))

format: .venv/.lint  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: .venv/.test  ## a real training run with ckptd beside it
	@$(BIN)/python tests/demo/run.py

picture: .venv/.test  ## draw docs/plan.svg anew, from a real plan
	@$(BIN)/python tests/demo/picture.py

soak: .venv/.test  ## hours of it: EXAMPLES of the world, then SAVES beside a `watch` that is killed again and again
	$(BIN)/python -m tests.soak.soak $(or $(EXAMPLES),5000) $(or $(SAVES),20000) $(SEED)

real: .venv/.real  ## the tests against real training frameworks
	$(BIN)/python -m pytest tests/real $(ARGS)

bench: .venv/.real  ## how fast, small and asleep ckptd is, each against a named peer; ARGS="latency --short"
	@$(BIN)/python -m tests.bench.run $(ARGS)

root: check-root .venv/.test  ## the tests that need root: systemd, mounts, power cuts
	@$(call install_packages,root,$(ROOT_PACKAGES))
	$(BIN)/python -m pytest tests/root $(ARGS)

field: check-root .venv/.test  ## the tests beside other people's services, each of our own: Slurm
	@$(call install_packages,field,$(FIELD_PACKAGES))
	$(BIN)/python -m pytest tests/field $(ARGS)

smoke: check-python smoke-39  ## a fresh install without torch, and does the command start
	@echo 'making a fresh environment ...'; \
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; $(call copy_source,$$dir/source); \
	$(PYTHON) -m venv "$$dir/venv"; \
	"$$dir/venv/bin/python" -m pip -qq --disable-pip-version-check install "$$dir/source"; \
	cd "$$dir"; \
	venv/bin/ckptd --help; \
	venv/bin/python -m ckptd --help >/dev/null; \
	venv/bin/python -c 'import ckptd.cli, importlib.util as u, sys; \
	  assert u.find_spec("torch") is None, "torch came along"; \
	  assert u.find_spec("tests") is None, "the tests came along"; \
	  assert (u.find_spec("ckptd").origin or "").startswith(sys.prefix), "not the installed ckptd"'; \
	echo 'smoke: ckptd is installed and starts; torch is not there'

# A job's environment: an old Python, and nothing that the daemon needs.
smoke-39:
	@command -v python3.9 >/dev/null && python3.9 -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo 'smoke: no python3.9 with venv is here, so the install into a job of that age was not tried'; exit 0; }; \
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; $(call copy_source,$$dir/source); \
	python3.9 -m venv "$$dir/venv"; \
	"$$dir/venv/bin/python" -m pip -qq --disable-pip-version-check install "$$dir/source"; \
	cd "$$dir"; \
	venv/bin/python -c 'import ckptd.core.replay, ckptd.inspect.content, ckptd.inspect.verdict, ckptd.workdir.pointer, importlib.util as u; \
	  assert not [name for name in ("click", "watchdog") if u.find_spec(name)], "the daemon came along"'; \
	said=$$(venv/bin/ckptd --help 2>&1) && { echo 'smoke: the command runs on 3.9?'; exit 1; }; \
	[ "$$(wc -l <<<"$$said")" = 1 ] || { echo "$$said"; exit 1; }; \
	echo 'smoke: what jobs import is installed on Python 3.9, and the command says what it needs'

# A private environment, so that an upgrade of the system's packages cannot break the command. Scripts in it name
# the interpreter by its full path, which must be the one without DESTDIR.
lib = $(DESTDIR)$(PREFIX)/lib/ckptd
install: check-python  ## put the command and the systemd units below PREFIX (/usr/local), with DESTDIR before it
	@umask 022; echo 'installing ckptd into $(DESTDIR)$(PREFIX) ...'; \
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; $(call copy_source,$$dir/source); \
	rm -rf '$(lib)'; mkdir -p '$(lib)' '$(DESTDIR)$(PREFIX)/bin'; \
	$(PYTHON) -m venv '$(lib)'; \
	'$(lib)/bin/python' -m pip -qq --disable-pip-version-check install --no-warn-script-location "$$dir/source"; \
	sed -i '1,3s|$(DESTDIR)$(PREFIX)/lib/ckptd/|$(PREFIX)/lib/ckptd/|' '$(lib)/bin/ckptd'; \
	ln -sfn ../lib/ckptd/bin/ckptd '$(DESTDIR)$(PREFIX)/bin/ckptd'
	@umask 022; for where in system user; do \
	  from=systemd/ckptd@.service; [ $$where = system ] || from=systemd/user/ckptd@.service; \
	  to='$(DESTDIR)$(PREFIX)'/lib/systemd/$$where; mkdir -p "$$to"; \
	  sed 's|/usr/local/bin/ckptd|$(PREFIX)/bin/ckptd|g' "$$from" > "$$to/ckptd@.service"; \
	done
	@'$(lib)/bin/python' -c "$$warn_if_private" '$(PREFIX)'

uninstall:  ## take away what install put there
	rm -rf '$(lib)'
	rm -f '$(DESTDIR)$(PREFIX)/bin/ckptd'
	rm -f '$(DESTDIR)$(PREFIX)/lib/systemd/system/ckptd@.service' '$(DESTDIR)$(PREFIX)/lib/systemd/user/ckptd@.service'

clean:  ## remove what was made here, .venv and its downloads too
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage .coverage.* htmlcov
	find ckptd tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	  printf 'make %-10s %s\n' "$$name" "$$text"; done

# One environment for all targets: torch is large. Each stamp is newer than what it was made from.
.venv/.made:
	@$(MAKE) --no-print-directory check-python
	@echo 'making .venv ...'
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.test: .venv/.made setup.cfg pyproject.toml tests/requirements.txt
	@echo 'installing ckptd and tests/requirements.txt into .venv (torch takes a while) ...'
	@$(PIP) install -e . -r tests/requirements.txt
	@touch $@

.venv/.lint: .venv/.test tests/requirements-lint.txt
	@echo 'installing tests/requirements-lint.txt into .venv ...'
	@$(PIP) install -r tests/requirements-lint.txt
	@touch $@

# In two steps: mmcv is built from source with what is already there, as the file says.
.venv/.real: .venv/.test tests/requirements-real.txt
	@echo 'installing tests/requirements-real.txt into .venv ...'
	@grep -E '^(setuptools|opencv)' tests/requirements-real.txt > .venv/real-first.txt
	@$(PIP) install -r .venv/real-first.txt
	@$(PIP) install --no-build-isolation -r tests/requirements-real.txt
	@touch $@

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'make: $(PYTHON) is missing or older than 3.11: name a newer one, as in `make PYTHON=/usr/bin/python3.12`'; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo 'make: $(PYTHON) has no venv module: install it (on Debian: `apt-get install python3-venv`)'; exit 1; }

check-root:
	@[ "$$(id -u)" = 0 ] || { \
	  echo 'This needs root. Without it these cannot run:'; ls tests/root/test_*.py tests/field/test_*.py | sed 's/^/  /'; \
	  exit 1; }

define install_packages
missing=$$(for package in $(2); do \
    dpkg-query -W -f '$${Status}\n' "$$package" 2>/dev/null | grep -q '^install ok' || echo "$$package"; done); \
[ -z "$$missing" ] || { \
  command -v apt-get >/dev/null || { echo "make $(1): not Debian; install these by hand:" $$missing; exit 1; }; \
  echo "installing" $$missing "..."; apt-get update -qq; \
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $$missing >/dev/null; }
endef

# Builds leave files beside the source: built from a copy, they leave none here, and none of root's.
define copy_source
mkdir -p "$(1)"; cp -R $(wildcard setup.cfg pyproject.toml README.md LICENSE) ckptd "$(1)/"
endef

# A service's user must be able to reach the interpreter, which one in somebody's home prevents.
define warn_if_private
import os, pathlib, sys
python = pathlib.Path(sys.executable).resolve()
closed = [str(p) for p in python.parents if not os.stat(p).st_mode & 0o001]
print(f"ckptd is in {sys.argv[1]}/bin, run by {python}")
if closed:
    print(f"note: {closed[-1]} is closed to other users, so a service with User= cannot run it; "
          "use a system interpreter: make install PYTHON=/usr/bin/python3")
endef
export warn_if_private
