/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The background worker of one database.
 *
 * Attaches to the database's slot, opens the meter, and then at every interval
 * makes counts and history durable and keeps the rollups, until it has been
 * idle for a while, the server stops, or a command needs the database for
 * itself.  Before it leaves it closes the meter, so that nothing is admitted
 * that nobody writes down; the next verification has a worker started and waits
 * for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/extension.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#include "worker.h"

AkDatabase *ak_my_db = NULL;
bool		ak_my_db_is_closing = false;

/*
 * SIGTERM: leave, after closing the meter.  A statement under way is cancelled,
 * lest the server's stop wait for a lock, or for a synchronous standby that is
 * gone; what it was to write is written when the meter is closed.  There is no
 * such statement before the worker is attached, and memory may hold something
 * for it.
 */
static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	ShutdownRequestPending = true;
	if (ak_my_db != NULL)
	{
		QueryCancelPending = true;
		InterruptPending = true;
	}
	SetLatch(MyLatch);
	errno = save_errno;
}

/* Cancelled by a person, or by lock_timeout: ak_worker_durable_transaction(). */
static void
handle_sigint(SIGNAL_ARGS)
{
	ak_worker_cancels++;
	StatementCancelHandler(postgres_signal_arg);
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
		{"lock_timeout", "10s"},	/* 500 ms once attached */
		{"idle_in_transaction_session_timeout", "0"},
		AK_NO_TRANSACTION_TIMEOUT
		{"row_security", "off"},
		{"standard_conforming_strings", "on"},
		{"zero_damaged_pages", "off"},
		{"exit_on_error", "off"},
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
 * Whether memory holds nothing that the tables do not know: the meter was closed,
 * and nothing was given back since.
 */
static bool
is_written(AkDatabase *db)
{
	return !db->incarnation_open && ak_counts_are_clean(db);
}

/*
 * Leave the slot.  Who waits for the worker is woken and has another started.
 */
static void
detach(int code, Datum arg)
{
	if (ak_my_db == NULL)
		return;
	ak_my_db->open = false;
	ak_my_db->worker_awake = false;
	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	if (ak_my_db->worker == MyProc)
		ak_my_db->worker = NULL;

	/*
	 * What could not be written, or was given back since, is for the next one:
	 * who has given it back has called this one.
	 */
	if (!is_written(ak_my_db))
		ak_my_db->worker_wanted = true;
	if (ak_shared->launcher != NULL)
		SetLatch(&ak_shared->launcher->procLatch);
	LWLockRelease(ak_shared->control);
	ConditionVariableBroadcast(&ak_my_db->changed);
	ak_my_db = NULL;
}

/*
 * Find the database's slot.  NULL if the extension is not installed.  Slots of
 * former installations are given back first: there may be no other one left.
 */
static AkDatabase *
find_slot(uint32 *generation)
{
	AkDatabase *db = NULL;
	Oid			extension;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	extension = get_extension_oid("apikeys", true);
	ak_database_forget(MyDatabaseId, extension);
	if (OidIsValid(extension))
	{
		db = ak_catalog()->db;
		*generation = ak_catalog()->generation;
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	return db;
}

/*
 * Become the database's worker.  False if it has one, or wants none now; or one
 * that opens the meter, and this is only a visit; or the slot is not the one that
 * was found any more.
 */
static bool
attach(AkDatabase *db, uint32 generation, bool is_visit)
{
	bool		attached;

	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	attached = db->generation == generation &&
		db->worker == NULL && db->held_by == 0 &&
		!(is_visit && db->worker_wanted);
	if (attached)
	{
		if (is_visit)
			db->called_at = 0;	/* who calls from now on waits for its end */
		db->worker = MyProc;
		db->worker_wanted = false;
		db->step_aside = false;
		ak_my_db = db;
	}
	LWLockRelease(ak_shared->control);
	return attached;
}

/* How long transactions that the server's stop ends may take over it. */
#define REFUND_TIME (1 * USECS_PER_SEC)

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
	ConditionVariablePrepareToSleep(&ak_my_db->changed);
	while (pg_atomic_read_u32(&ak_my_db->refundable) > 0 &&
		   ak_elapsed() < deadline)
	{
		elog(DEBUG1, "waiting for transactions that may give back");
		(void) ConditionVariableTimedSleep(&ak_my_db->changed,
										   ak_ms_until(deadline),
										   ak_wait_event("ApikeysRefunds"));
	}
	ConditionVariableCancelSleep();
	RESUME_CANCEL_INTERRUPTS();
}

/* How often the worker tries to leave nothing in memory. */
#define CLOSINGS 3

/*
 * Close the meter, and again if something was given back meanwhile: a server's
 * stop may come before another worker does.  For the same reason a worker that was
 * told to leave before it had opened the meter opens it here, and admits nobody.
 * This gates no admission any more, so it waits for no standby: one that is
 * promoted without it takes the ceilings it knows.
 */
static void
close_meter(AkDatabase *db, AkFlush *flush)
{
	bool		closed = true;

	ak_worker_report("closing");
	ak_my_db_is_closing = true;
	SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);
	if (ShutdownRequestPending)
		await_refunds();

	/* SIGTERM may come in the midst of it. */
	for (int n = 0; n < CLOSINGS && !is_written(db) &&
		 (closed || ShutdownRequestPending); n++)
	{
		QueryCancelPending = false;
		closed = ak_incarnation_open(db) && ak_incarnation_close(db, flush);
	}
	if (closed)
	{
		QueryCancelPending = false;
		ak_write_uses(db, true);
		ak_rollup_close(db);
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
		ak_worker_check_interrupts();
}

void
ak_worker_main(Datum arg)
{
	AkDatabase *db;
	AkFlush    *flush;
	uint32		generation;

	pqsignal(SIGTERM, handle_sigterm);
	pqsignal(SIGINT, handle_sigint);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(AK_WORKER_DATABASE(arg),
											  InvalidOid, 0);
	override_settings();

	db = find_slot(&generation);
	if (db == NULL || !attach(db, generation, AK_WORKER_IS_VISIT(arg)))
		proc_exit(0);
	before_shmem_exit(detach, (Datum) 0);

	/* From here on clients may wait for it. */
	SetConfigOption("lock_timeout", "500ms", PGC_SUSET, PGC_S_OVERRIDE);

	if (AK_WORKER_IS_VISIT(arg))
	{
		visit(db);
		proc_exit(0);
	}

	flush = ak_flush_create(db);
	if (!ak_incarnation_open(db) && !ShutdownRequestPending)
		proc_exit(1);
	ak_worker_serve(flush);
	if (ak_worker_is_orphaned())
	{
		ak_database_release(db);
		ak_my_db = NULL;
		proc_exit(0);
	}
	close_meter(db, flush);
	proc_exit(is_written(db) ? 0 : 1);
}
