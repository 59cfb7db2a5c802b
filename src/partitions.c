/*-------------------------------------------------------------------------
 *
 * partitions.c
 *	  The history's partitions by day: made ahead, and dropped when the retention
 *	  is over.  Runs in a database's worker, as steps of maintain.c.
 *
 * A step locks the whole history for a moment, with the worker's lock_timeout:
 * what cannot have its lock is tried again in the next round.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/datetime.h"

#include "worker.h"

/* Partitions made ahead, beside today's. */
#define DAYS_AHEAD 2

/* Old rows of the DEFAULT partition removed in one step. */
#define HISTORY_BATCH 10000

/*
 * Partitions that may fail to have their locks in one round: readers of the
 * history queue behind each try.
 */
#define LOCK_TRIES 3

typedef struct Round
{
	int			julian;			/* today */
	int			days_ahead;		/* of the next partition */
	char		undroppable[NAMEDATALEN];	/* old partitions up to this one were
											 * tried; empty: none yet */
	int			lock_tries;
} Round;

static Round current;

typedef struct Day
{
	int			julian;
	char		name[64];		/* of its partition */
	char		from[32];
	char		until[32];
} Day;

static void
format_date(int julian, char *out, Size size, const char *format)
{
	int			year,
				month,
				day;

	j2date(julian, &year, &month, &day);
	snprintf(out, size, format, year, month, day);
}

static void
set_day(Day *day, int julian)
{
	day->julian = julian;
	format_date(julian, day->name, sizeof(day->name), "requests_%04d_%02d_%02d");
	format_date(julian, day->from, sizeof(day->from), "%04d-%02d-%02d 00:00:00+00");
	format_date(julian + 1, day->until, sizeof(day->until), "%04d-%02d-%02d 00:00:00+00");
}

static int
today(void)
{
	return POSTGRES_EPOCH_JDATE +
		(int) (GetCurrentTimestamp() / USECS_PER_DAY);
}

/* A round of maintenance begins. */
void
ak_partitions_begin(void)
{
	current = (Round)
	{
		.julian = today()
	};
}

/* The columns of the history that take values, as a list in SQL. */
static char *
stored_columns(void)
{
	if (SPI_execute("SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)"
					" FROM pg_attribute"
					" WHERE attrelid = 'apikeys.requests'::regclass AND attnum > 0"
					" AND NOT attisdropped AND attgenerated = ''",
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not list the columns of apikeys.requests");
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}

/*
 * Whether there is nothing to make for a day: its partition is there, if only as
 * a table that somebody has detached, or a partition of somebody's own has some of
 * the day.  What it leaves of it goes to the DEFAULT partition.
 */
static bool
is_taken(const Day *day)
{
	char	   *query = psprintf("SELECT FROM pg_class WHERE relname = '%s'"
								 " AND relnamespace = 'apikeys'::regnamespace"
								 " UNION ALL SELECT FROM pg_inherits i"
								 " JOIN pg_class c ON c.oid = i.inhrelid,"
								 " regexp_match(pg_get_expr(c.relpartbound, c.oid),"
								 " '^FOR VALUES FROM [(](.*)[)] TO [(](.*)[)]$') b"
								 " WHERE i.inhparent = 'apikeys.requests'::regclass"
								 " AND CASE WHEN b[1] = 'MINVALUE' THEN true"
								 " ELSE btrim(b[1], '''')::timestamptz < '%s' END"
								 " AND CASE WHEN b[2] = 'MAXVALUE' THEN true"
								 " ELSE btrim(b[2], '''')::timestamptz > '%s' END",
								 day->name, day->until, day->from);

	if (SPI_execute(query, true, 1) < 0)
		elog(ERROR, "could not look for a partition");
	return SPI_processed > 0;
}

/*
 * ALTER DEFAULT PRIVILEGES may have granted a new partition: who may see the
 * history is granted apikeys.requests.
 */
static void
revoke_defaults(const char *partition)
{
	char	   *grantees;

	if (SPI_execute(psprintf("SELECT string_agg(DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC'"
							 " ELSE a.grantee::regrole::text END, ', ')"
							 " FROM pg_class c, aclexplode(c.relacl) a"
							 " WHERE c.oid = 'apikeys.%s'::regclass AND a.grantee <> c.relowner",
							 partition), false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the privileges of a partition");
	grantees = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (grantees != NULL)
		ak_run(psprintf("REVOKE ALL ON apikeys.%s FROM %s CASCADE", partition,
						grantees));
}

/*
 * Make a day's partition, unless it is taken.  What the DEFAULT partition
 * caught of that day moves into it.
 */
static void
make_partition(void *arg)
{
	const Day  *day = arg;
	char	   *columns;

	if (is_taken(day))
		return;
	columns = stored_columns();

	/* What a DBA has added to the history, ATTACH wants to find. */
	ak_run(psprintf("CREATE TABLE apikeys.%s (LIKE apikeys.requests"
					" INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS)",
					day->name));
	revoke_defaults(day->name);

	/* No primary key: else a publication would refuse updates and deletes. */
	ak_run(psprintf("ALTER TABLE apikeys.%s REPLICA IDENTITY FULL", day->name));
	ak_plan_by_index();
	ak_run(psprintf("WITH moved AS (DELETE FROM apikeys.requests_default"
					" WHERE \"timestamp\" >= '%s' AND \"timestamp\" < '%s' RETURNING *)"
					" INSERT INTO apikeys.%s (%s) SELECT %s FROM moved",
					day->from, day->until, day->name, columns, columns));
	ak_run(psprintf("CREATE INDEX %s_key_id_idx ON apikeys.%s (key_id, \"timestamp\")",
					day->name, day->name));
	ak_run(psprintf("CREATE INDEX %s_denied_idx ON apikeys.%s (\"timestamp\")"
					" WHERE status = 'denied'", day->name, day->name));
	ak_run(psprintf("ALTER TABLE apikeys.requests ATTACH PARTITION apikeys.%s"
					" FOR VALUES FROM ('%s') TO ('%s')",
					day->name, day->from, day->until));
}

/*
 * Drop the oldest partition if it lies wholly before a day, but for those that
 * were tried in this round.  One at a time: each takes a lock on the whole
 * history for a moment.  Then what the DEFAULT partition has from before it, by
 * its index: it may have all of the history (a restore of data alone).
 */
typedef struct Retention
{
	Day			first_kept;
	char		oldest[NAMEDATALEN];	/* empty: there is none */
	bool		again;
} Retention;

static void
drop_oldest_partition(void *arg)
{
	Retention  *retention = arg;
	char	   *oldest = psprintf("SELECT c.relname FROM pg_inherits i"
								  " JOIN pg_class c ON c.oid = i.inhrelid"
								  " WHERE i.inhparent = 'apikeys.requests'::regclass"
								  " AND c.relname ~ '^requests_\\d{4}_\\d\\d_\\d\\d$'"
								  " AND c.relname > '%s'"
								  " AND c.relname < '%s' ORDER BY c.relname LIMIT 1",
								  current.undroppable,
								  retention->first_kept.name);

	if (SPI_execute(oldest, true, 1) < 0)
		elog(ERROR, "could not look for old partitions");
	retention->again = SPI_processed > 0;
	if (retention->again)
	{
		strlcpy(retention->oldest,
				SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1),
				sizeof(retention->oldest));
		ak_run(psprintf("DROP TABLE apikeys.%s", retention->oldest));
	}
	else
	{
		ak_plan_by_index();
		ak_run(psprintf("DELETE FROM apikeys.requests_default WHERE ctid = ANY (ARRAY("
					 "SELECT ctid FROM apikeys.requests_default"
					 " WHERE \"timestamp\" < '%s' ORDER BY \"timestamp\" LIMIT %d))",
					 retention->first_kept.from, HISTORY_BATCH));
		retention->again = SPI_processed == HISTORY_BATCH;
	}
}

/*
 * A partition could not be dropped: go on with the next one, unless too many
 * were locked.
 */
static AkStepResult
pass_over(const char *partition)
{
	bool		locked = ak_my_db->last_failure.sqlerrcode ==
		ERRCODE_LOCK_NOT_AVAILABLE;

	if (locked && ++current.lock_tries >= LOCK_TRIES)
		return AK_STEP_FAILED;
	strlcpy(current.undroppable, partition, sizeof(current.undroppable));
	return AK_STEP_AGAIN;
}

/* Make the next partition that is to be there. */
AkStepResult
ak_partition_step(void)
{
	Day			day;
	bool		again = current.days_ahead < DAYS_AHEAD;

	set_day(&day, current.julian + current.days_ahead++);
	return ak_maintain_run(make_partition, &day, &again);
}

/*
 * The days that the retention reaches back, wholly or partly: those are kept.
 */
static int
retained_days(void)
{
	const int	day = MINS_PER_HOUR * HOURS_PER_DAY;

	return ak_history_retention / day + (ak_history_retention % day != 0);
}

/* Drop what is older than the retention, a partition a step. */
AkStepResult
ak_retention_step(void)
{
	Retention	retention = {.oldest = ""};
	AkStepResult	result;

	/* One that reaches back beyond the year 1 keeps all, as 0 does. */
	if (ak_history_retention == 0 ||
		retained_days() > current.julian - date2j(1, 1, 1))
		return AK_STEP_DONE;
	set_day(&retention.first_kept, current.julian - retained_days());
	result = ak_maintain_run(drop_oldest_partition, &retention, &retention.again);
	if (result == AK_STEP_FAILED && retention.oldest[0] != '\0')
		return pass_over(retention.oldest);
	return result;
}
