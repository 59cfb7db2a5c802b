/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The background worker of one database.
 *
 * Attaches to the database's slot, opens the meter, and then at every interval
 * makes counts and history durable and keeps the rollups, until it has been
 * idle for a while, the server stops, or somebody needs the database for
 * himself.  Before it leaves it closes the meter, so that nothing is admitted
 * that nobody writes down; the next verification has a worker started and waits
 * for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/wait_event.h"

#include "worker.h"

static AkDatabase *my_db = NULL;
static bool closing = false;	/* what is written now gates no admission */
static bool opened = false;		/* the meter was opened */
static bool closed = false;		/* and all was written since */

/*
 * SIGTERM: leave, after closing the meter.  A statement under way is cancelled,
 * lest the server's stop wait for a lock, or for a synchronous standby that is
 * gone; what it was to write is written when the meter is closed.
 */
static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	ShutdownRequestPending = true;
	QueryCancelPending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/*
 * Keep the extension from being dropped in this transaction: its tables go by
 * name, and somebody else's could have taken theirs.
 */
static void
keep_extension(void)
{
	LockDatabaseObject(ExtensionRelationId, my_db->extension, 0,
					   AccessShareLock);
	if (!ak_catalog_exists() || ak_catalog()->db != my_db)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"apikeys\" was dropped from the database")));
}

/* Become the owner of the extension's tables, for this transaction. */
static void
become_owner(void)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(ak_catalog()->keys));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for apikeys.keys");
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	SetUserIdAndSecContext(owner, SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
}

/*
 * Run a transaction with SPI connected.  False if it has failed: the error is
 * in the server log, and the worker goes on.
 *
 * It runs with the rights of the tables' owner and fires no triggers but those
 * that are ENABLE ALWAYS, which only the owner can make: who may attach a
 * trigger to a table must not have it run by a superuser.
 */
bool
ak_worker_transaction(AkTransaction body, void *arg)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool ok = true;
	Oid			user;
	int			context;

	/* After SIGTERM nothing more will cancel a statement. */
	if (ShutdownRequestPending && !closing)
		return false;
	GetUserIdAndSecContext(&user, &context);

	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		keep_extension();
		become_owner();
		body(arg);
		SetUserIdAndSecContext(user, context);
		SPI_finish();
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortCurrentTransaction();
		if (my_db != NULL)
			ak_failure_note(my_db);
		FlushErrorState();
		RESUME_INTERRUPTS();
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	pgstat_report_stat(false);
	return ok;
}

/*
 * Between transactions.  There is no statement to cancel: one that is begun later
 * is, or after SIGTERM the meter is closed first.
 */
static void
check_interrupts(void)
{
	HOLD_CANCEL_INTERRUPTS();
	CHECK_FOR_INTERRUPTS();
	RESUME_CANCEL_INTERRUPTS();
}

/* Set a parameter for the rest of the worker's transaction. */
void
ak_set_locally(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * Plan the rest of the transaction by index, whatever the planner thinks of a
 * table's size: tables here grow faster than they are analyzed.
 */
void
ak_plan_by_index(void)
{
	ak_set_locally("enable_seqscan", "off");
	ak_set_locally("enable_bitmapscan", "off");
	ak_set_locally("enable_hashjoin", "off");
	ak_set_locally("enable_mergejoin", "off");
}

/*
 * What ALTER DATABASE or ALTER ROLE may have set must not keep the worker from
 * its work, nor decide whose functions it calls.
 */
static void
override_settings(void)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_isolation", "read committed"},
		{"role", "none"},
		{"session_replication_role", "replica"},	/* no client's triggers */
		{"synchronous_commit", "on"},
		{"statement_timeout", "0"},
		{"lock_timeout", "500ms"},	/* clients may wait meanwhile */
		{"idle_in_transaction_session_timeout", "0"},
		{"row_security", "off"},
		{"standard_conforming_strings", "on"},
		{"zero_damaged_pages", "off"},
		{"jit", "off"},			/* short statements, whatever they seem to cost */
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
		{"TimeZone", "UTC"},
		{"application_name", "apikeys worker"},
	};

	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET,
						PGC_S_OVERRIDE);
	SetConfigOption("client_encoding", GetDatabaseEncodingName(), PGC_SUSET,
					PGC_S_OVERRIDE);
}

/* ----- attaching and leaving ----- */

/*
 * Leave the slot.  Who waits for the worker is woken and has another started.
 */
static void
detach(int code, Datum arg)
{
	if (my_db == NULL)
		return;
	my_db->open = false;
	my_db->worker_awake = false;
	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	if (my_db->worker == MyProc)
		my_db->worker = NULL;

	/*
	 * What could not be written, or was given back since, is for the next one:
	 * who has given it back has called this one.
	 */
	if (opened && (!closed || pg_atomic_read_u32(&my_db->dirty) != AK_NONE))
		my_db->worker_wanted = true;
	if (ak_shared->launcher != NULL)
		SetLatch(&ak_shared->launcher->procLatch);
	LWLockRelease(ak_shared->control);
	ConditionVariableBroadcast(&my_db->changed);
	my_db = NULL;
}

/* Find the database's slot.  NULL if the extension is not installed. */
static AkDatabase *
find_slot(void)
{
	AkDatabase *db = NULL;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (ak_catalog_exists())
	{
		db = ak_catalog()->db;
		ak_database_forget(MyDatabaseId, db->extension);
	}
	else
		ak_database_forget(MyDatabaseId, InvalidOid);
	PopActiveSnapshot();
	CommitTransactionCommand();
	return db;
}

/*
 * Become the database's worker.  False if it has one, or wants none now; or one
 * that opens the meter, and this is only a visit.
 */
static bool
attach(AkDatabase *db, bool is_visit)
{
	bool		attached;

	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	attached = db->worker == NULL && db->held_by == 0 &&
		!(is_visit && db->worker_wanted);
	if (attached)
	{
		if (is_visit)
			db->called_at = 0;	/* who calls from now on waits for its end */
		db->worker = MyProc;
		db->worker_wanted = false;
		db->step_aside = false;
		my_db = db;
	}
	LWLockRelease(ak_shared->control);
	return attached;
}

/* The extension was dropped: nobody will ask for these counts. */
static bool
is_orphaned(void)
{
	bool		orphaned;

	HOLD_INTERRUPTS();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	orphaned = !ak_catalog_exists() || ak_catalog()->db != my_db;
	PopActiveSnapshot();
	CommitTransactionCommand();
	RESUME_INTERRUPTS();
	return orphaned;
}

/* ----- the main loop ----- */

/*
 * Counts are looked at twice an interval, so that one whose row is due is exact
 * in apikeys.usage within half an interval.
 */
#define COUNTS_PER_INTERVAL 2

/* How long transactions that the server's stop ends may take over it. */
#define REFUND_TIME (1 * USECS_PER_SEC)

/* By ak_elapsed(): a wall clock that is set back must not put off a flush. */
typedef struct Schedule
{
	int64		next_counts;
	int64		next_history;
	int64		next_sweep;
	bool		maintaining;	/* a round is not over yet */
	int64		last_work;
} Schedule;

/* When the worker has been idle for long enough to leave. */
static int64
idle_at(const Schedule *schedule)
{
	return schedule->last_work + ak_worker_idle_timeout * USECS_PER_SEC;
}

static bool
has_work(AkFlush *flush)
{
	return my_db->urgent || my_db->history_urgent || !ak_flush_is_clean(flush) ||
		!ak_history_is_empty(my_db) || my_db->uses_pending > 0;
}

/* Shorter intervals hold at once. */
static void
hasten(Schedule *schedule, int64 now)
{
	int64		interval = ak_flush_interval * INT64CONST(1000);

	schedule->next_counts = Min(schedule->next_counts,
								now + interval / COUNTS_PER_INTERVAL);
	schedule->next_history = Min(schedule->next_history, now + interval);
	schedule->next_sweep = Min(schedule->next_sweep,
							   now + ak_sweep_interval * USECS_PER_SEC);
}

/* What the worker does from now on, for pg_stat_activity. */
static void
report(const char *activity)
{
	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, activity);
}

static void
flush_counts_due(AkFlush *flush, Schedule *schedule, int64 now)
{
	int64		begin = ak_elapsed();
	bool		flushed = true;

	if (has_work(flush))
	{
		report("flushing counts");
		flushed = ak_flush_counts(flush, AK_PASS_INTERVAL);
		if (flushed)
			my_db->last_flush = ak_elapsed();
		schedule->last_work = now;
	}
	if (flushed)
		my_db->counts_flushed = begin;
	schedule->next_counts = now +
		ak_flush_interval * INT64CONST(1000) / COUNTS_PER_INTERVAL;
}

/* False if the history could not be written. */
static bool
flush_history_due(Schedule *schedule, int64 now)
{
	int64		begin = ak_elapsed();
	bool		flushed = true;

	if (!ak_history_is_empty(my_db))
	{
		report("flushing history");
		flushed = ak_flush_history(my_db);
		if (!flushed)
			my_db->stalled = true;
	}
	if (flushed)
	{
		my_db->history_flushed = begin;
		ak_write_uses(my_db, false);
	}
	schedule->next_history = now + ak_flush_interval * INT64CONST(1000);
	return flushed;
}

static void
rollup_due(void)
{
	report("writing rollups");
	ak_rollup_step(my_db);
}

static void
sweep_due(Schedule *schedule, int64 now)
{
	ak_maintain_begin(flush_history_due(schedule, now));
	schedule->maintaining = true;
	schedule->next_sweep = now + ak_sweep_interval * USECS_PER_SEC;
}

static void
maintenance_due(Schedule *schedule)
{
	report("maintaining");
	schedule->maintaining = ak_maintain_step();
}

/*
 * There was nothing to do, so whatever there is now is no older than the call.
 */
static void
forget_sleep(void)
{
	int64		since = my_db->called_at != 0 ? my_db->called_at : ak_elapsed();

	my_db->counts_flushed = since;
	my_db->history_flushed = since;
	pg_memory_barrier();
}

/*
 * Whether somebody has called the worker.  It may have been woken for it while
 * it waited for something else.
 */
static bool
is_called(void)
{
	return ShutdownRequestPending || my_db->step_aside || my_db->urgent ||
		(my_db->history_urgent && !my_db->stalled);
}

/*
 * Sleep until the next interval, or until something is to be done.  A worker
 * with nothing to flush first says that it sleeps, then looks once more: who
 * adds work after that wakes it (ak_nudge_if_asleep).
 */
static void
sleep_until_due(AkFlush *flush, const Schedule *schedule)
{
	static uint32 wait_event = 0;
	int64		until = schedule->next_counts;
	bool		asleep;

	if (wait_event == 0)
		wait_event = ak_wait_event("ApikeysWorkerMain");
	my_db->called_at = 0;
	my_db->worker_awake = false;
	pg_memory_barrier();
	asleep = !has_work(flush) && pg_atomic_read_u32(&my_db->reserved) == 0;
	if (asleep)
		until = Min(schedule->next_sweep, idle_at(schedule));
	else
		my_db->worker_awake = true;
	until = Min(until, ak_rollup_due(my_db));
	if (schedule->maintaining)
		until = 0;

	pgstat_report_activity(STATE_IDLE, NULL);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 is_called() ? 0 : ak_ms_until(until), wait_event);
	ResetLatch(MyLatch);
	if (asleep)
		forget_sleep();
	my_db->worker_awake = true;
}

/* Who waits for a ceiling waits for one transaction of the worker's at most. */
static void
serve_urgent(AkFlush *flush)
{
	if (my_db->urgent)
		(void) ak_flush_counts(flush, AK_PASS_URGENT);
}

/*
 * Flush at every interval until there is a reason to leave: a shutdown, somebody
 * who needs the database, a dropped extension, or nothing to do.
 */
static void
serve(AkFlush *flush)
{
	int64		now = ak_elapsed();
	Schedule	schedule = {
		.next_counts = now,
		.next_history = now,
		.next_sweep = now,
		.last_work = now
	};

	/* A worker before this one may have left something. */
	if (!has_work(flush) || my_db->counts_flushed == 0)
		my_db->counts_flushed = my_db->history_flushed = now;
	my_db->worker_awake = true;
	for (;;)
	{
		if (ShutdownRequestPending || my_db->step_aside || is_orphaned())
			return;
		check_interrupts();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			hasten(&schedule, ak_elapsed());
		}

		now = ak_elapsed();
		serve_urgent(flush);
		if (now >= schedule.next_counts)
			ak_reservations_release_due(my_db);
		if (now >= schedule.next_counts)
			flush_counts_due(flush, &schedule, now);
		if (now >= schedule.next_sweep)
			sweep_due(&schedule, now);
		serve_urgent(flush);
		if (schedule.maintaining)
			maintenance_due(&schedule);
		serve_urgent(flush);
		if (now >= schedule.next_history ||
			(my_db->history_urgent && !my_db->stalled))
			(void) flush_history_due(&schedule, now);
		serve_urgent(flush);
		if (now >= ak_rollup_due(my_db))
			rollup_due();
		if (now >= idle_at(&schedule) && !has_work(flush) &&
			!schedule.maintaining &&
			pg_atomic_read_u32(&my_db->refundable) == 0 &&
			pg_atomic_read_u32(&my_db->reserved) == 0)
			return;
		sleep_until_due(flush, &schedule);
	}
}

/*
 * The server stops: its backends are about to give back what their transactions
 * may.  What is written without that is wrong for ever: memory ends with the
 * server.
 */
static void
await_refunds(void)
{
	int64		deadline = ak_elapsed() + REFUND_TIME;

	HOLD_CANCEL_INTERRUPTS();
	ConditionVariablePrepareToSleep(&my_db->changed);
	while (pg_atomic_read_u32(&my_db->refundable) > 0 &&
		   ak_elapsed() < deadline)
	{
		elog(DEBUG1, "waiting for transactions that may give back");
		(void) ConditionVariableTimedSleep(&my_db->changed,
										   ak_ms_until(deadline),
										   ak_wait_event("ApikeysRefunds"));
	}
	ConditionVariableCancelSleep();
	RESUME_CANCEL_INTERRUPTS();
}

/*
 * Close the meter.  This gates no admission any more, so it waits for no
 * standby: one that is promoted without it takes the ceilings it knows.
 */
static void
close_meter(AkFlush *flush)
{
	report("closing");
	closing = true;
	SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);
	QueryCancelPending = false;
	if (ShutdownRequestPending)
		await_refunds();
	closed = ak_incarnation_close(my_db, flush);
	if (!closed && ShutdownRequestPending)
	{
		/* SIGTERM may have come in the midst of it. */
		QueryCancelPending = false;
		closed = ak_incarnation_close(my_db, flush);
	}
	if (closed)
	{
		ak_write_uses(my_db, true);
		ak_rollup_close(my_db);
	}
}

/*
 * Tidy up a database that nobody verifies in, until somebody calls for a worker
 * that opens the meter: it does the rest.
 */
static void
visit(AkDatabase *db)
{
	(void) ak_incarnation_settle(db);
	ak_rollup_visit(db);
	ak_maintain_begin(ak_history_is_empty(db));
	while (db->called_at == 0 && !ShutdownRequestPending &&
		   !db->step_aside && ak_maintain_step())
		check_interrupts();
}

void
ak_worker_main(Datum arg)
{
	AkDatabase *db;
	AkFlush    *flush;

	pqsignal(SIGTERM, handle_sigterm);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(AK_WORKER_DATABASE(arg),
											  InvalidOid, 0);
	override_settings();

	db = find_slot();
	if (db == NULL || !attach(db, AK_WORKER_IS_VISIT(arg)))
		proc_exit(0);
	before_shmem_exit(detach, (Datum) 0);

	if (AK_WORKER_IS_VISIT(arg))
	{
		visit(db);
		proc_exit(0);
	}

	flush = ak_flush_create(db);
	if (!ak_incarnation_open(db))
		proc_exit(1);
	opened = true;
	serve(flush);
	if (is_orphaned())
	{
		ak_database_release(db);
		my_db = NULL;
		proc_exit(0);
	}
	close_meter(flush);
	proc_exit(closed ? 0 : 1);
}
