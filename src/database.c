/*-------------------------------------------------------------------------
 *
 * database.c
 *	  Shared memory: its layout, and one slot for each database that verifies.
 *
 * A slot belongs to a database and an installation of the extension there, so
 * that DROP and CREATE EXTENSION, or a clone of the database, never see each
 * other's counts.  Slots are handed out and taken back under the control lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "storage/shmem.h"

#include "apikeys.h"
#include "reserve.h"

AkShared   *ak_shared = NULL;

static Size
databases_size(void)
{
	return add_size(offsetof(AkShared, databases),
					mul_size(ak_max_databases, sizeof(AkDatabase)));
}

void
ak_shmem_request(void)
{
	RequestAddinShmemSpace(databases_size());
	RequestAddinShmemSpace(ak_meter_shmem_size());
	RequestAddinShmemSpace(ak_history_shmem_size());
	RequestAddinShmemSpace(ak_reservations_shmem_size());
	RequestAddinShmemSpace(ak_hints_shmem_size());
	RequestNamedLWLockTranche("apikeys_control", 1);
	RequestNamedLWLockTranche("apikeys_reservations", 1);
	RequestNamedLWLockTranche("apikeys_meter", AK_PARTITIONS);
	RequestNamedLWLockTranche("apikeys_history", ak_max_databases * AK_LANES);
}

/* The postmaster goes on after a crash, and logs, before there is a new one. */
static void
shmem_gone(int code, Datum arg)
{
	ak_shared = NULL;
}

void
ak_shmem_startup(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	ak_shared = ShmemInitStruct("apikeys", databases_size(), &found);
	if (!found)
	{
		memset(ak_shared, 0, databases_size());
		SpinLockInit(&ak_shared->free_lock);
		pg_atomic_init_u32(&ak_shared->hand, 0);
		pg_atomic_init_u64(&ak_shared->evictions, 0);
		pg_atomic_init_u32(&ak_shared->kept_requests, 0);
		pg_atomic_init_u32(&ak_shared->nprefixes, 0);
		ak_shared->control = &GetNamedLWLockTranche("apikeys_control")->lock;
		ak_shared->reservations = &GetNamedLWLockTranche("apikeys_reservations")->lock;
		ak_shared->partitions = GetNamedLWLockTranche("apikeys_meter");
		ak_shared->lane_locks = GetNamedLWLockTranche("apikeys_history");
		for (int i = 0; i < ak_max_databases; i++)
			ConditionVariableInit(&ak_shared->databases[i].changed);
	}
	ak_meter_shmem_init(found);
	ak_history_shmem_init(found);
	ak_reservations_shmem_init();
	ak_hints_shmem_init(found);
	LWLockRelease(AddinShmemInitLock);
	on_shmem_exit(shmem_gone, 0);
}

int
ak_database_index(AkDatabase *db)
{
	return db - ak_shared->databases;
}

LWLock *
ak_lane_lock(AkDatabase *db, int lane)
{
	return &ak_shared->lane_locks[ak_database_index(db) * AK_LANES + lane].lock;
}

/* Make a free slot the given database's.  The caller holds the control lock. */
static void
slot_init(AkDatabase *db, Oid dboid, Oid extension)
{
	/* Not "changed": who has waited may still be on its list. */
	memset(db, 0, offsetof(AkDatabase, changed));
	memset(db->lanes, 0, sizeof(db->lanes));
	db->extension = extension;
	db->generation = ++ak_shared->next_generation;
	pg_atomic_init_u64(&db->seen, 0);
	pg_atomic_init_u32(&db->dirty, AK_NONE);
	SpinLockInit(&db->asked_lock);
	pg_atomic_init_u32(&db->refundable, 0);
	pg_atomic_init_u32(&db->reserved, 0);
	for (int i = 0; i < AK_LANES; i++)
	{
		db->lanes[i].lane.head = AK_NONE;
		db->lanes[i].lane.tail = AK_NONE;
	}
	db->dboid = dboid;
}

/*
 * The slot of a database and installation, made if need be.  NULL if there is
 * none left.
 */
static AkDatabase *
find_or_make(Oid dboid, Oid extension)
{
	AkDatabase *result = NULL;
	AkDatabase *unused = NULL;

	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	for (int i = 0; i < ak_max_databases && result == NULL; i++)
	{
		AkDatabase *db = &ak_shared->databases[i];

		if (db->dboid == dboid && db->extension == extension)
			result = db;
		else if (!OidIsValid(db->dboid) && unused == NULL)
			unused = db;
	}
	if (result == NULL && unused != NULL)
	{
		slot_init(unused, dboid, extension);
		result = unused;
	}
	LWLockRelease(ak_shared->control);
	return result;
}

/* The slot of a database with another installation than the given one, or NULL. */
static AkDatabase *
slot_of_another(Oid dboid, Oid extension)
{
	AkDatabase *result = NULL;

	LWLockAcquire(ak_shared->control, LW_SHARED);
	for (int i = 0; i < ak_max_databases; i++)
		if (ak_shared->databases[i].dboid == dboid &&
			ak_shared->databases[i].extension != extension)
			result = &ak_shared->databases[i];
	LWLockRelease(ak_shared->control);
	return result;
}

/* How long the worker of a dropped installation may take to leave, in ms. */
#define LEAVE_MS 1000

/*
 * All slots are in use: take that of the installation before this one.  Its
 * worker looks whether it is orphaned when it is woken, and gives it back.
 * NULL if there is none, or the worker stays, as while the DROP EXTENSION is not
 * committed.
 */
static AkDatabase *
take_over(Oid dboid, Oid extension)
{
	AkDatabase *other = slot_of_another(dboid, extension);
	AkDatabase *result;
	AkWait		wait;

	if (other == NULL)
		return NULL;
	ak_wait_begin(&wait, other, LEAVE_MS);
	do
	{
		ak_database_forget(dboid, extension);
		result = find_or_make(dboid, extension);
	} while (result == NULL && ak_wait_once(&wait));
	ak_wait_end(&wait);
	return result;
}

/* Have the launcher look for slots that nobody uses any more. */
static void
call_for_slots(void)
{
	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	ak_shared->slot_wanted = true;
	if (ak_shared->launcher != NULL)
		SetLatch(&ak_shared->launcher->procLatch);
	LWLockRelease(ak_shared->control);
}

/*
 * The slot of a database and installation, made if need be.  The caller holds no
 * lock: it may have to wait for the worker of the installation before.
 *
 * Errors: 53400 if there is none left.
 */
AkDatabase *
ak_database_acquire(Oid dboid, Oid extension)
{
	AkDatabase *result = find_or_make(dboid, extension);

	if (result == NULL)
		result = take_over(dboid, extension);
	if (result == NULL)
	{
		call_for_slots();
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases use apikeys"),
				 errhint("Raise \"%s\" (now %d) and restart the server.",
						 "apikeys.max_databases", ak_max_databases)));
	}
	return result;
}

/*
 * Give a slot back, with all that the meter and the history hold for it.  Only
 * for a database or an installation that is gone; a worker attached to it (the
 * caller itself, or one that has died with its database) is forgotten.
 */
void
ak_database_release(AkDatabase *db)
{
	uint32		generation;

	db->open = false;
	ak_meter_barrier();
	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	generation = db->generation;
	db->generation = ++ak_shared->next_generation;	/* nothing more is held */
	LWLockRelease(ak_shared->control);
	ak_meter_forget(generation, false);
	ak_history_forget(db);
	ak_reservations_forget(generation, false);
	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	db->generation = ++ak_shared->next_generation;
	db->worker = NULL;
	db->dboid = InvalidOid;
	db->extension = InvalidOid;
	LWLockRelease(ak_shared->control);
	ConditionVariableBroadcast(&db->changed);
}

/*
 * Release a database's slots, but for that of one installation.  Each is first
 * made the caller's own, as if it were its worker, lest one attach meanwhile.
 */
void
ak_database_forget(Oid dboid, Oid except_extension)
{
	for (int i = 0; i < ak_max_databases; i++)
	{
		AkDatabase *db = &ak_shared->databases[i];
		bool		stale;

		LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
		stale = db->dboid == dboid && db->extension != except_extension &&
			(db->worker == NULL || db->worker == MyProc);
		if (stale)
			db->worker = MyProc;
		LWLockRelease(ak_shared->control);
		if (stale)
			ak_database_release(db);
	}
}

/*
 * Have the worker leave a database, and keep it away until
 * ak_database_unhold(): somebody is about to drop, rename or copy it, or to
 * update the extension there.  Waits for at most five seconds, as long as the
 * server itself would.
 *
 * Who wants a worker meanwhile asks once and then sleeps: "worker_wanted" stays
 * as it is, for the launcher to find afterwards.
 */
void
ak_database_hold(Oid dboid)
{
	for (int i = 0; i < ak_max_databases; i++)
	{
		AkDatabase *db = &ak_shared->databases[i];
		AkWait		wait;
		bool		gone;

		ak_wait_begin(&wait, db, 5000);
		do
		{
			LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
			gone = db->dboid != dboid || db->worker == NULL;
			if (db->dboid == dboid)
			{
				db->held_by = MyProcPid;
				if (db->worker != NULL)
				{
					db->step_aside = true;
					SetLatch(&db->worker->procLatch);
				}
			}
			LWLockRelease(ak_shared->control);
		} while (!gone && ak_wait_once(&wait));
		ak_wait_end(&wait);
	}
}

void
ak_database_unhold(void)
{
	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	for (int i = 0; i < ak_max_databases; i++)
	{
		AkDatabase *db = &ak_shared->databases[i];

		if (db->held_by == MyProcPid)
			db->held_by = 0;
	}
	if (ak_shared->launcher != NULL)
		SetLatch(&ak_shared->launcher->procLatch);
	LWLockRelease(ak_shared->control);
}

/* Wake the database's worker, or have the launcher start one. */
void
ak_nudge(AkDatabase *db)
{
	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	if (db->called_at == 0)
		db->called_at = ak_elapsed();
	if (db->worker != NULL)
		SetLatch(&db->worker->procLatch);
	else
	{
		db->worker_wanted = true;
		if (ak_shared->launcher != NULL)
			SetLatch(&ak_shared->launcher->procLatch);
	}
	LWLockRelease(ak_shared->control);
}

/*
 * The same, unless the worker looks by itself soon enough.  To be called after the
 * work was made visible: a worker about to sleep first says so, then looks again.
 */
void
ak_nudge_if_asleep(AkDatabase *db)
{
	pg_memory_barrier();
	if (!db->worker_awake || (db->history_urgent && !db->stalled))
		ak_nudge(db);
}
