/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Start a worker for each database that needs one.
 *
 * The launcher is connected to no database.  A verification that finds no
 * worker asks for one; beside that, every database is visited once after the
 * server's start, and those that use the extension every
 * apikeys.sweep_interval, so that expired keys are swept though nobody
 * verifies.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#include "worker.h"

/*
 * A worker is started again no sooner than this after its last start, in ms:
 * one that cannot do its work must not be started over and over.
 */
#define RETRY_MS 1000

/* What the launcher knows of a slot's worker; lives in its own memory. */
typedef struct Started
{
	BackgroundWorkerHandle *handle; /* NULL: none was started */
	int64		at;				/* by ak_elapsed() */
} Started;

static Started *started;		/* a slot each */
static List *to_visit = NIL;	/* databases */
static BackgroundWorkerHandle *visitor = NULL;
static bool slots_are_short = false;

void
ak_launcher_register(void)
{
	BackgroundWorker worker = {
		.bgw_name = "apikeys launcher",
		.bgw_type = "apikeys launcher",
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = 1,
		.bgw_library_name = "apikeys",
		.bgw_function_name = "ak_launcher_main",
	};

	RegisterBackgroundWorker(&worker);
}

static void
launcher_detach(int code, Datum arg)
{
	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	ak_shared->launcher = NULL;
	LWLockRelease(ak_shared->control);
}

/* Start a worker.  NULL if the server has no slot free for it. */
static BackgroundWorkerHandle *
start_worker(Oid dboid, bool visit)
{
	BackgroundWorker worker = {
		.bgw_name = "apikeys worker",
		.bgw_type = "apikeys worker",
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = BGW_NEVER_RESTART,
		.bgw_library_name = "apikeys",
		.bgw_function_name = "ak_worker_main",
		.bgw_main_arg = AK_WORKER_ARG(dboid, visit),
		.bgw_notify_pid = MyProcPid,
	};
	BackgroundWorkerHandle *handle = NULL;

	if (RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		slots_are_short = false;
		return handle;
	}
	if (!slots_are_short)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker slot is free for apikeys"),
				 errdetail("Databases that verify keys now take turns."),
				 errhint("Raise \"%s\".", "max_worker_processes")));
	slots_are_short = true;
	return NULL;
}

static bool
is_over(BackgroundWorkerHandle **handle)
{
	pid_t		pid;

	if (*handle == NULL)
		return true;
	if (GetBackgroundWorkerPid(*handle, &pid) != BGWH_STOPPED)
		return false;
	pfree(*handle);
	*handle = NULL;
	return true;
}

/* ----- workers that were asked for ----- */

/* The database of a slot that wants a worker and has none, or InvalidOid. */
static Oid
wants_worker(AkDatabase *db)
{
	Oid			result = InvalidOid;

	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	if (db->held_by != 0 && BackendPidGetProc(db->held_by) == NULL)
		db->held_by = 0;		/* its backend died */
	if (OidIsValid(db->dboid) && db->worker == NULL && db->worker_wanted &&
		db->held_by == 0)
		result = db->dboid;
	LWLockRelease(ak_shared->control);
	return result;
}

/*
 * Workers hold all the slots and another is wanted: ask one to leave.  It
 * closes its meter first, and comes back when its turn comes.
 */
static void
ask_one_to_leave(int wanted)
{
	for (int n = 1; n < ak_max_databases; n++)
	{
		AkDatabase *db = &ak_shared->databases[(wanted + n) % ak_max_databases];
		bool		asked = false;

		LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
		if (db->worker != NULL)
		{
			db->step_aside = true;
			SetLatch(&db->worker->procLatch);
			asked = true;
		}
		LWLockRelease(ak_shared->control);
		if (asked)
			return;
	}
}

/* The sooner of two times in ms; -1 is never. */
static long
sooner(long a, long b)
{
	if (a < 0 || b < 0)
		return Max(a, b);
	return Min(a, b);
}

/* Start what is wanted.  Returns in how many ms to look again, or -1. */
static long
start_wanted(void)
{
	long		again = -1;

	for (int i = 0; i < ak_max_databases; i++)
	{
		Oid			dboid = wants_worker(&ak_shared->databases[i]);
		int64		now = ak_elapsed();
		long		left;

		if (!OidIsValid(dboid) || !is_over(&started[i].handle))
			continue;
		left = started[i].at == 0 ? 0 :
			ak_ms_until(started[i].at + RETRY_MS * INT64CONST(1000));
		if (left > 0)
		{
			again = sooner(again, left);
			continue;
		}
		started[i].handle = start_worker(dboid, false);
		started[i].at = now;
		if (started[i].handle == NULL)
		{
			ask_one_to_leave(i);
			again = sooner(again, RETRY_MS);
		}
	}
	return again;
}

/* ----- visits ----- */

/*
 * List the databases, as the autovacuum launcher does it; "visitable" are those
 * that can be connected to, but for templates: a visit there would be in the
 * way of CREATE DATABASE.
 */
static void
list_databases(List **all, List **visitable)
{
	MemoryContext caller = CurrentMemoryContext;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	*all = *visitable = NIL;
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext oldcontext = MemoryContextSwitchTo(caller);

		*all = lappend_oid(*all, form->oid);
		if (form->datallowconn && !form->datistemplate)
			*visitable = lappend_oid(*visitable, form->oid);
		MemoryContextSwitchTo(oldcontext);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
}

/* The databases that have a slot, but no worker. */
static List *
unattended_slots(void)
{
	Oid		   *found = palloc(ak_max_databases * sizeof(Oid));
	List	   *result = NIL;
	int			n = 0;

	LWLockAcquire(ak_shared->control, LW_SHARED);
	for (int i = 0; i < ak_max_databases; i++)
	{
		AkDatabase *db = &ak_shared->databases[i];

		if (OidIsValid(db->dboid) && db->worker == NULL)
			found[n++] = db->dboid;
	}
	LWLockRelease(ak_shared->control);
	for (int i = 0; i < n; i++)
		result = list_append_unique_oid(result, found[i]);
	pfree(found);
	return result;
}

/*
 * Plan the next round of visits: all databases the first time, afterwards those
 * with a slot and no worker.  Slots of databases that are gone are freed; the
 * slots are looked at first, so that a new database is not taken for one.
 */
static void
plan_visits(bool first)
{
	List	   *slots = unattended_slots();
	List	   *all;
	List	   *visitable;
	ListCell   *lc;

	list_databases(&all, &visitable);
	if (first)
		to_visit = list_copy(visitable);
	foreach(lc, to_visit)
		if (!list_member_oid(visitable, lfirst_oid(lc)))
			to_visit = foreach_delete_current(to_visit, lc);
	foreach(lc, slots)
	{
		if (!list_member_oid(all, lfirst_oid(lc)))
			ak_database_forget(lfirst_oid(lc), InvalidOid);
		else if (list_member_oid(visitable, lfirst_oid(lc)))
			to_visit = list_append_unique_oid(to_visit, lfirst_oid(lc));
	}
	list_free(slots);
	list_free(all);
	list_free(visitable);
}

/*
 * Somebody found no slot: begin a round of visits, which give back the slots of
 * extensions that were dropped, and wake the workers, which do the same; once a
 * second at most.  Returns in how many ms to look again, or -1.
 */
static long
answer_call(int64 now, int64 *next_round)
{
	static int64 next = 0;
	long		left = ak_ms_until(next);
	bool		called;

	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	called = ak_shared->slot_wanted;
	if (called && left == 0)
	{
		ak_shared->slot_wanted = false;
		for (int i = 0; i < ak_max_databases; i++)
			if (ak_shared->databases[i].worker != NULL)
				SetLatch(&ak_shared->databases[i].worker->procLatch);
		next = now + RETRY_MS * INT64CONST(1000);
		*next_round = now;
	}
	LWLockRelease(ak_shared->control);
	return called && left > 0 ? left : -1;
}

/*
 * Start the next visit, one at a time.  Returns in how many ms to look again, or
 * -1.
 */
static long
visit_next(void)
{
	if (to_visit == NIL || !is_over(&visitor))
		return -1;
	visitor = start_worker(linitial_oid(to_visit), true);
	if (visitor == NULL)
		return RETRY_MS;
	to_visit = list_delete_first(to_visit);
	return -1;
}

void
ak_launcher_main(Datum arg)
{
	uint32		wait_event;
	int64		next_round;		/* by ak_elapsed() */

	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	started = MemoryContextAllocZero(TopMemoryContext,
									 ak_max_databases * sizeof(Started));
	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	ak_shared->launcher = MyProc;
	LWLockRelease(ak_shared->control);
	before_shmem_exit(launcher_detach, (Datum) 0);

	MemoryContextSwitchTo(TopMemoryContext);
	wait_event = ak_wait_event("ApikeysLauncherMain");
	plan_visits(true);
	next_round = ak_elapsed() + ak_sweep_interval * USECS_PER_SEC;

	while (!ShutdownRequestPending)
	{
		int64		now = ak_elapsed();
		long		timeout;
		long		again;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			next_round = Min(next_round, now + ak_sweep_interval * USECS_PER_SEC);
		}
		again = answer_call(now, &next_round);
		if (now >= next_round)
		{
			plan_visits(false);
			next_round = now + ak_sweep_interval * USECS_PER_SEC;
		}
		again = sooner(again, start_wanted());
		again = sooner(again, visit_next());
		timeout = sooner(again, ak_ms_until(next_round));
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, wait_event);
		ResetLatch(MyLatch);
	}

	/* Not 0, which would end the launcher for good. */
	proc_exit(1);
}
