/*-------------------------------------------------------------------------
 *
 * worker_transaction.c
 *	  Transactions of a database's worker.
 *
 * They use the extension's tables by name, so they keep the extension from being
 * dropped meanwhile, and run with no more rights than those tables' owner has.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "worker.h"

/*
 * Keep the extension from being dropped in this transaction: its tables go by
 * name, and somebody else's could have taken theirs.
 */
static void
keep_extension(void)
{
	LockDatabaseObject(ExtensionRelationId, ak_my_db->extension, 0,
					   AccessShareLock);
	if (!ak_catalog_is(ak_my_db->extension) || ak_catalog()->db != ak_my_db)
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
	if (ShutdownRequestPending && !ak_my_db_is_closing)
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
		if (ak_my_db != NULL)
			ak_failure_note(ak_my_db);
		FlushErrorState();
		RESUME_INTERRUPTS();
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	pgstat_report_stat(false);
	return ok;
}

volatile sig_atomic_t ak_worker_cancels = 0;

/*
 * Run a transaction on the ground of which something is admitted.  False also if
 * it was cancelled: that may have been the wait for a standby, which then does not
 * know of it though it is committed here.
 */
bool
ak_worker_durable_transaction(AkTransaction body, void *arg)
{
	sig_atomic_t cancels = ak_worker_cancels;

	return ak_worker_transaction(body, arg) && ak_worker_cancels == cancels;
}

/*
 * Between transactions.  There is no statement to cancel: one that is begun later
 * is, or after SIGTERM the meter is closed first.
 */
void
ak_worker_check_interrupts(void)
{
	HOLD_CANCEL_INTERRUPTS();
	CHECK_FOR_INTERRUPTS();
	RESUME_CANCEL_INTERRUPTS();
}

/* The extension was dropped: nobody will ask for these counts. */
bool
ak_worker_is_orphaned(void)
{
	bool		orphaned;

	HOLD_INTERRUPTS();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	orphaned = !ak_catalog_is(ak_my_db->extension);
	PopActiveSnapshot();
	CommitTransactionCommand();
	RESUME_INTERRUPTS();
	return orphaned;
}
