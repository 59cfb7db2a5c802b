# apikeys: PGXS build. "make", "make install" and "make installcheck" work as
# for any extension; ./dev does all of it on a fresh machine.

EXTENSION = apikeys
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(srcdir)/apikeys.control)

MODULE_big = apikeys
SHLIB_LINK = $(filter -lcrypto,$(LIBS))
OBJS = $(patsubst $(srcdir)/%.c,%.o,$(sort $(wildcard $(srcdir)/src/*.c)))

INSTALL_SQL = $(sort $(wildcard $(srcdir)/sql/install/*.sql))
BUILT_SQL = sql/apikeys--$(EXTVERSION).sql
DATA_built = $(BUILT_SQL)
# Frozen install scripts and the steps between versions. The present version's,
# once frozen, is what is built; PGXS puts srcdir before the names.
DATA = $(filter-out sql/upgrade/$(notdir $(BUILT_SQL)), \
	$(patsubst $(srcdir)/%,%,$(sort $(wildcard $(srcdir)/sql/upgrade/*.sql))))
EXTRA_CLEAN = $(BUILT_SQL) fuzz results output_iso log tmp_check tmp_check_iso \
	regression.diffs regression.out .built_with

# The server under test needs the library preloaded: installcheck starts one.
TEST_CONF = $(srcdir)/test/postgresql.conf
REGRESS = $(patsubst $(srcdir)/test/sql/%.sql,%,$(sort $(wildcard $(srcdir)/test/sql/*.sql)))
REGRESS_OPTS = --inputdir=$(srcdir)/test --temp-instance=tmp_check \
	--temp-config=$(TEST_CONF)
ISOLATION = $(patsubst $(srcdir)/test/specs/%.spec,%,$(sort $(wildcard $(srcdir)/test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=$(srcdir)/test --outputdir=. \
	--temp-instance=tmp_check_iso --temp-config=$(TEST_CONF)
TAP_TESTS = 1
PROVE_TESTS = $(sort $(wildcard $(srcdir)/test/t/*.pl))

srcdir ?= .
PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# PostgreSQL's own headers want these exceptions. A warning is an error in the
# builds of ./dev alone (COPT): other compilers have other warnings.
override CFLAGS += -Wall -Wextra -Wno-unused-parameter \
	-Wno-sign-compare -Wno-missing-field-initializers
override CPPFLAGS := -I$(srcdir)/src $(CPPFLAGS)

# Objects that were made for one server may not even load into another.
BUILT_WITH = $(shell $(PG_CONFIG) --version --configure | cksum)
.built_with: FORCE
	@echo '$(BUILT_WITH)' | cmp -s - $@ || echo '$(BUILT_WITH)' >$@
.PHONY: FORCE

$(OBJS) $(OBJS:.o=.bc): $(wildcard $(srcdir)/src/*.h) .built_with | $(CURDIR)/src

# For a build outside of the source tree. (By its full name, since else VPATH
# finds the source's.)
$(CURDIR)/src:
	@mkdir -p $@

$(BUILT_SQL): $(INSTALL_SQL)
	@mkdir -p $(@D)
	cat $^ >$@

# At a release: keep the install script as it is now, for tests of updates and
# for CREATE EXTENSION ... VERSION. What was released is never written over.
FROZEN_SQL = $(srcdir)/sql/upgrade/$(notdir $(BUILT_SQL))
.PHONY: freeze
freeze:
	@mkdir -p $(dir $(FROZEN_SQL))
	@grep -q '^#define AK_VERSION "$(EXTVERSION)"' $(srcdir)/src/apikeys.h || { \
		echo 'freeze: AK_VERSION in src/apikeys.h is not $(EXTVERSION), as apikeys.control says' >&2; \
		exit 1; }
	@cat $(INSTALL_SQL) >$(FROZEN_SQL).new
	@if [ ! -e $(FROZEN_SQL) ]; then \
		mv $(FROZEN_SQL).new $(FROZEN_SQL); \
	elif cmp -s $(FROZEN_SQL).new $(FROZEN_SQL); then \
		rm $(FROZEN_SQL).new; \
	else \
		rm $(FROZEN_SQL).new; \
		echo 'freeze: $(EXTVERSION) is frozen already, and differs; a change needs a new version' >&2; \
		exit 1; \
	fi
	@echo 'Frozen: $(FROZEN_SQL)'

# Fuzz what reads bytes from outside. Needs clang with its runtime libraries;
# what is learned and found is kept in fuzz/. All of the fuzzers run one after
# the other, each as long; test/long/fuzz has more to say.
FUZZERS = $(patsubst $(srcdir)/test/fuzz/%_fuzz.c,%,$(sort $(wildcard $(srcdir)/test/fuzz/*_fuzz.c)))
FUZZ_SECONDS = 60
FUZZ_CFLAGS = -g -O1 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -fsanitize=fuzzer,address,undefined \
	-fno-sanitize-recover=undefined
FUZZ_CPPFLAGS = -I$(srcdir)/test/fuzz -I$(srcdir)/src -isystem $(shell $(PG_CONFIG) --includedir-server)

# The sources that each of them calls. What those call in turn, but no fuzzer,
# is left undefined.
fuzz_address = address.c http_address.c
fuzz_headers = http_headers.c limits_show.c rate.c period.c
fuzz_permissions = expression.c
fuzz_rate = rate.c period.c credits.c
fuzz_redaction = redact.c
fuzz_secret = secret.c

.PHONY: fuzz fuzzers
fuzzers: $(FUZZERS:%=fuzz/%_fuzz)

fuzz/%_fuzz: $(wildcard $(srcdir)/test/fuzz/*.[ch] $(srcdir)/src/*.[ch])
	@mkdir -p fuzz
	clang $(FUZZ_CFLAGS) $(FUZZ_CPPFLAGS) -no-pie -o $@ \
		$(srcdir)/test/fuzz/$*_fuzz.c $(srcdir)/test/fuzz/backend.c \
		$(srcdir)/test/fuzz/crc_table.c $(fuzz_$*:%=$(srcdir)/src/%) \
		-Wl,--unresolved-symbols=ignore-all -Wl,--allow-multiple-definition \
		-L$(shell $(PG_CONFIG) --pkglibdir) -L$(shell $(PG_CONFIG) --libdir) \
		-lpgcommon -lpgport -lm

fuzz: fuzzers
	set -e; for name in $(FUZZERS); do \
		mkdir -p fuzz/corpus/$$name; \
		fuzz/$${name}_fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=4200 \
			-detect_leaks=0 -artifact_prefix=fuzz/$$name- -print_final_stats=1 \
			$$(ls $(srcdir)/test/fuzz/$$name.dict 2>/dev/null | sed 's/^/-dict=/') \
			fuzz/corpus/$$name $$(ls -d $(srcdir)/test/fuzz/seeds/$$name 2>/dev/null); \
	done
