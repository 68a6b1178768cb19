# make demo      watch a failover on this machine; needs no root
# make test      prove it: as root everything, as an ordinary user all that one may
# make sim       simulate clusters under faults; SECONDS=60 and THREADS=1 by default
# make fuzz      search for input that breaks it, for SECONDS=60 in all; tests/fuzz/src/lib.rs says how to add more
# make chaos     five minutes of random failures, judged from outside; CHAOS="--seed 7" and the like
# make chaos-files  the same for files: users edit while servers, disks and cables fail; CHAOS="--seed 7" and the like
# make random    random histories of users on real trees, other ones each day; SEEDS=from..to
# make bench     measure it, beside keepalived; BENCH="--runs 3" and the like
# make bench-sync  how fast files become alike, beside rsync, unison and csync2; BENCH="--runs 1 --scale 10" and the like
# make model     explore the election exhaustively, at the nightly depth; MODEL="--scenario crash" and the like
# make mutants   prove the proof: plant each known bug and see who notices; MUTANTS="--only NoPreVote"
# make cargo-mutants  which lines of the cores no test holds: each is broken in turn, for hours; nightly, in shares with
#                CARGO_MUTANTS="--shard 1/8" and the like
# make boot      three machines under real systemd and real sysvinit, as root: installed as above, a short pass; and
# make nightly   all of that, and make random: upgrade, rotation of the key, reboot, halt, power loss, re-install, with lost requests
# make install   as root; PREFIX=/usr/local, DESTDIR for packages
# make install-built  the same without building: on a server without Rust, in a copy of this folder with what was built

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
CARGO ?= cargo
SECONDS ?= 60
THREADS ?= 1
SEEDS ?= $(shell first=$$(($$(date +%s) / 86400 * 5000)); echo $$first..$$((first + 5000)))
TARGET := $(or $(CARGO_TARGET_DIR),target)
# What `make boot` and `make install-built` take: release or debug.
PROFILE ?= release
NSPAWN = $(TARGET)/boot/nspawn
PROGRAMS = hbd listend doctord electd syncd standin
# What the lab needs, and what has it in Debian. keepalived is there to be compared with; an SSH server for tests of
# syncd, and rsync and mkfs.ext4 for one of them each; groff to read the manual as a reader does; cc, pkg-config and OpenSSL's headers to build it.
TOOLS = ip nft keepalived cc pkg-config sshd rsync groff mkfs.ext4
PACKAGES = iproute2 nftables keepalived gcc libc6-dev pkg-config libssl-dev openssh-server rsync groff-base e2fsprogs

# What is fed hostile input, and by what; make test does without them.
SUBJECTS = $(notdir $(basename $(wildcard tests/fuzz/fuzz_targets/*.rs)))

# What decides, and does nothing else.
CORES = clock detector election filesync heartbeat link schedule

# These folders are not in every user's path.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.PHONY: all deps chrony build demo test sim chaos chaos-files random fuzz-deps fuzz bench bench-sync-deps bench-sync model mutants cargo-mutants boot-deps boot nightly install install-built clean

all: build

deps:
	@missing=; for tool in $(TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	pkg-config --exists openssl 2>/dev/null || missing="$$missing openssl"; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(PACKAGES); \
	else \
		echo "not installed:$$missing; as root: apt-get install $(PACKAGES)"; \
		command -v ip >/dev/null && command -v nft >/dev/null; \
	fi

# Unpacked and not installed: tests look at a chronyd, and an installed one would be started and steer the clock.
chrony:
	@test -x $(TARGET)/chrony/usr/sbin/chronyd || test -x /usr/sbin/chronyd || { command -v apt-get >/dev/null && \
		mkdir -p $(TARGET)/chrony && cd $(TARGET)/chrony && \
		{ apt-get download -q chrony || { apt-get update -q && apt-get download -q chrony; }; } && \
		dpkg -x chrony_*.deb . && rm -f chrony_*.deb; } || \
		echo "no chronyd: the tests beside it are skipped, or fail where nothing may be"

build:
	$(CARGO) build --release --workspace --bins

demo: deps build
	$(TARGET)/release/standin lab demo

test: deps chrony
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then $(MAKE) boot PROFILE=debug; else \
		echo "no machine is booted: needs root, on Debian"; fi

sim:
	$(CARGO) run --release -p standin-sim -- --seconds $(SECONDS) --threads $(THREADS)

fuzz-deps:
	@command -v c++ >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends g++; } || \
		{ echo "no C++ compiler; as root: apt-get install g++"; false; }
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz

# The fuzzer's flags are not stable ones. What it finds out stays in $(TARGET)/fuzz, what breaks something too.
fuzz: fuzz-deps
	RUSTC_BOOTSTRAP=1 $(CARGO) fuzz build --fuzz-dir tests/fuzz --sanitizer none --features libfuzzer
	@for subject in $(SUBJECTS); do \
		own=$(TARGET)/fuzz/$$subject && mkdir -p $$own && echo "fuzzing $$subject" && \
		$(TARGET)/*/release/$$subject -max_total_time=$$(expr \( $(SECONDS) - 1 \) / $(words $(SUBJECTS)) + 1) \
			-timeout=10 -max_len=4096 -len_control=0 -print_final_stats=1 -artifact_prefix=$(TARGET)/fuzz/$$subject- \
			$$own tests/fuzz/corpus/$$subject >$$own.log 2>&1 || { tail -40 $$own.log; exit 1; }; \
		grep -E '^stat::number_of|DONE' $$own.log; \
	done

chaos: deps build
	$(TARGET)/release/chaos $(CHAOS)

chaos-files: deps build
	$(TARGET)/release/chaos-files $(CHAOS)

random:
	STANDIN_SEEDS=$(SEEDS) $(CARGO) test --release -p standin-store --test disk histories

bench: deps build
	$(TARGET)/release/bench $(BENCH)

# Where csync2 was not, nobody wants it to listen.
bench-sync-deps:
	@for tool in rsync unison csync2 ssh; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -z "$$missing" ] || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qy --no-install-recommends rsync unison csync2 openssh-client && case "$$missing" in *csync2*) \
		! command -v systemctl >/dev/null || systemctl disable --now csync2.socket;; esac; } || \
		{ echo "not installed:$$missing; as root: apt-get install rsync unison csync2 openssh-client"; false; }

bench-sync: deps bench-sync-deps build
	$(TARGET)/release/bench-sync $(BENCH)

model:
	$(CARGO) build --release -p standin-model
	$(TARGET)/release/standin-model --depth nightly $(MODEL)

# The checkers with the bugs in them, in a folder of their own: nothing of it is ever installed.
mutants: deps
	$(CARGO) build --release --workspace --bins --features standin-mutants/plant --target-dir $(TARGET)/mutants
	$(TARGET)/mutants/release/mutants $(MUTANTS)

# A mutant is built and tested in a copy of the sources. What is excluded, and why: tests/cargo-mutants.toml.
cargo-mutants:
	@$(CARGO) mutants --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-mutants
	mkdir -p $(TARGET)/cargo-mutants
	$(CARGO) mutants --config tests/cargo-mutants.toml $(CORES:%=--package standin-%) --output $(TARGET)/cargo-mutants $(CARGO_MUTANTS)

# systemd-nspawn is unpacked and not installed: its package would enable units of its own on this machine.
boot-deps:
	@missing=; for tool in debootstrap python3; do command -v $$tool >/dev/null || missing=yes; done; \
	[ -z "$$missing" ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends debootstrap python3; } || \
		{ echo "not installed; as root: apt-get install debootstrap python3"; false; }
	@test -x $(NSPAWN)/usr/bin/systemd-nspawn || { mkdir -p $(NSPAWN) && cd $(NSPAWN) && \
		{ apt-get download -q systemd-container || { apt-get update -q && apt-get download -q systemd-container; }; } && \
		dpkg -x systemd-container_*.deb . && rm -f systemd-container_*.deb; }
	@ldd $(NSPAWN)/usr/bin/systemd-nspawn | grep -q 'libsystemd-shared.*not found' || exit 0; cd $(NSPAWN) && \
		apt-get download -q libsystemd-shared && dpkg -x libsystemd-shared_*.deb . && rm -f libsystemd-shared_*.deb

boot: deps boot-deps
	$(CARGO) build --workspace --bins $(if $(filter debug,$(PROFILE)),,--release)
	PROFILE=$(PROFILE) tests/boot/run.sh --short $(BOOT)

nightly: deps boot-deps build random
	STANDIN_TESTS_SKIP_NOTHING=1 $(CARGO) test -p standin-tests --test netns -- --nightly
	tests/boot/run.sh $(BOOT)

install: build
	$(MAKE) install-built

install-built:
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/share/man $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -d -m 755 $(DESTDIR)$(SYSCONFDIR)/standin/master.d $(DESTDIR)$(SYSCONFDIR)/standin/slave.d
	install -d $(DESTDIR)$(SYSCONFDIR)/init.d
	cd $(TARGET)/$(PROFILE) && install -m 755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/sbin
	install -m 755 init.d/* $(DESTDIR)$(SYSCONFDIR)/init.d
	sed 's|/usr/sbin/|$(PREFIX)/sbin/|' etc/standin.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/standin.service
	install -d $(DESTDIR)$(SYSCONFDIR)/logrotate.d
	test -e $(DESTDIR)$(SYSCONFDIR)/logrotate.d/standin || \
		install -m 644 etc/standin.logrotate $(DESTDIR)$(SYSCONFDIR)/logrotate.d/standin
	test -e $(DESTDIR)$(SYSCONFDIR)/standin/standin.toml || \
		install -m 644 etc/standin.toml $(DESTDIR)$(SYSCONFDIR)/standin
	# hbd, listend and doctord run as this user, which owns nothing; packages make it themselves.
	test -n "$(DESTDIR)" || getent passwd standin >/dev/null || \
		useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin standin
	# Its members may read the status; it must be there before the roles start.
	test -n "$(DESTDIR)" || getent group standin-status >/dev/null || groupadd --system standin-status
	# Without these links a halt under SysV init ends the daemons at once; systemd reads the unit instead.
	test -n "$(DESTDIR)" || test -d /run/systemd/system || ! command -v update-rc.d >/dev/null || \
		update-rc.d standin defaults
	test -n "$(DESTDIR)" || ! test -d /run/systemd/system || systemctl daemon-reload
	install -d $(DESTDIR)$(PREFIX)/share/doc/standin
	cp -R etc docs/*.md README.md CHANGELOG.md LICENSE $(DESTDIR)$(PREFIX)/share/doc/standin
	for section in 5 8; do \
		install -d $(DESTDIR)$(PREFIX)/share/man/man$$section && \
		install -m 644 docs/man/*.$$section $(DESTDIR)$(PREFIX)/share/man/man$$section || exit 1; \
	done

clean:
	$(CARGO) clean
