# apikeys: PGXS build. "make", "make install" and "make installcheck" work as
# for any extension; ./dev does all of it on a fresh machine.

EXTENSION = apikeys
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(srcdir)/apikeys.control)

MODULE_big = apikeys
OBJS = $(patsubst $(srcdir)/%.c,%.o,$(sort $(wildcard $(srcdir)/src/*.c)))

INSTALL_SQL = $(sort $(wildcard $(srcdir)/sql/install/*.sql))
BUILT_SQL = sql/apikeys--$(EXTVERSION).sql
DATA_built = $(BUILT_SQL)
# Frozen install scripts and the steps between versions. The present version's,
# once frozen, is what is built; PGXS puts srcdir before the names.
DATA = $(filter-out sql/upgrade/$(notdir $(BUILT_SQL)), \
	$(patsubst $(srcdir)/%,%,$(sort $(wildcard $(srcdir)/sql/upgrade/*.sql))))
EXTRA_CLEAN = $(BUILT_SQL) fuzz results output_iso log tmp_check tmp_check_iso \
	regression.diffs regression.out

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

# PostgreSQL's own headers want these exceptions.
override CFLAGS += -Wall -Wextra -Werror -Wno-unused-parameter \
	-Wno-sign-compare -Wno-missing-field-initializers
override CPPFLAGS := -I$(srcdir)/src $(CPPFLAGS)

$(OBJS): $(wildcard $(srcdir)/src/*.h)

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

# Fuzz the parser of permissions. Needs clang with its runtime libraries; what
# it learns and finds is kept in fuzz/.
FUZZ_SECONDS = 60
.PHONY: fuzz
fuzz:
	@mkdir -p fuzz/corpus
	clang -g -O1 -Wall -Wextra -fsanitize=fuzzer,address,undefined \
		-fno-sanitize-recover=undefined \
		-I$(srcdir)/test/fuzz -I$(srcdir)/src -o fuzz/permissions_fuzz \
		$(srcdir)/test/fuzz/permissions_fuzz.c $(srcdir)/src/expression.c
	fuzz/permissions_fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=4200 \
		-dict=$(srcdir)/test/fuzz/permissions.dict -artifact_prefix=fuzz/ \
		-print_final_stats=1 fuzz/corpus $(srcdir)/test/fuzz/seeds
