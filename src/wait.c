/*-------------------------------------------------------------------------
 *
 * wait.c
 *	  Wait until a database's worker has done something.
 *
 *		ak_wait_begin(&wait, db, timeout);
 *		while (!condition)
 *			if (!ak_wait_once(&wait))
 *				ak_wait_failed(&wait);
 *		ak_wait_end(&wait);
 *
 * No lock may be held.  The first call of ak_wait_once() only announces the
 * wait, so that the condition is looked at once more and no wake-up is lost.  A
 * condition that may sleep for something else takes the announcement back before
 * (ConditionVariableCancelSleep); the time goes on.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/wait_event.h"

#include "apikeys.h"

void
ak_wait_begin(AkWait *wait, AkDatabase *db, int timeout_ms)
{
	wait->db = db;
	wait->prepared = false;
	wait->timeout_ms = timeout_ms;
}

/*
 * Sleep until something has changed.  False: the time is over.
 */
bool
ak_wait_once(AkWait *wait)
{
	static uint32 wait_event = 0;
	long		left;

	if (!wait->prepared)
	{
		ConditionVariablePrepareToSleep(&wait->db->changed);
		wait->prepared = true;
		wait->deadline = ak_elapsed() + wait->timeout_ms * INT64CONST(1000);
		return true;
	}
	if (wait_event == 0)
		wait_event = ak_wait_event("ApikeysWorker");
	left = ak_ms_until(wait->deadline);
	if (left == 0)
		return false;
	ak_nudge(wait->db);
	ConditionVariableTimedSleep(&wait->db->changed, left, wait_event);
	return true;
}

void
ak_wait_end(AkWait *wait)
{
	if (wait->prepared)
		ConditionVariableCancelSleep();
	wait->prepared = false;
}

/*
 * A decision that cannot be made is an error, never a yes.  Nothing is locked to
 * find out who is missing: it says where to look.
 */
void
ak_wait_failed(AkWait *wait)
{
	const char *detail;
	const char *hint;

	ak_wait_end(wait);
	if (wait->db->worker != NULL)
	{
		detail = "The apikeys worker of this database did not make room in time.";
		hint = "See the server log for errors of the worker; \"apikeys.max_tracked_keys\" may be too small.";
	}
	else if (ak_shared->launcher != NULL)
	{
		detail = "No apikeys worker is attached to this database.";
		hint = "See the server log; \"max_worker_processes\" may be too small, or the database does not accept connections.";
	}
	else
	{
		detail = "The apikeys launcher, which starts workers, is not running.";
		hint = "\"max_worker_processes\" was too small when the server was started; raise it and restart.";
	}
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
			 errmsg("the meter could not admit the request within %d ms",
					wait->timeout_ms),
			 errdetail_internal("%s", detail),
			 errhint("%s", hint)));
}
