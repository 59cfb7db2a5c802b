/*-------------------------------------------------------------------------
 *
 * refund.c
 *	  Give a charge back if the transaction, or savepoint, that made it aborts.
 *
 * A charge that may be given back is noted in the backend before it is made,
 * with the subtransaction that made it.  A subtransaction that commits hands
 * its charges to its parent.  Their entries stay in memory meanwhile, so that
 * giving back needs no look at any table: an aborting transaction could not.
 * The worker does not leave as idle before all is settled.
 *
 * PREPARE TRANSACTION is refused: its rollback would call nobody.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"

#include "apikeys.h"

typedef struct Refundable
{
	struct Refundable *next;	/* made before this one */
	int			level;			/* nesting of its transaction */
	bool		is_charged;		/* else it was only prepared */
	AkCharge	charge;
} Refundable;

static Refundable *refundables = NULL;

static AkDatabase *
database_of(const AkCharge *charge)
{
	return &ak_shared->databases[charge->limits[0].key.database];
}

static void
finish(Refundable *refundable, bool give_back)
{
	AkDatabase *db = database_of(&refundable->charge);

	if (refundable->is_charged)
		ak_meter_settle(&refundable->charge, give_back);

	/* A worker that closes the meter may wait for the last one. */
	if (pg_atomic_sub_fetch_u32(&db->refundable, 1) == 0)
		ConditionVariableBroadcast(&db->changed);
}

/* Finish the one that was noted last, and forget it. */
static void
finish_last(bool give_back)
{
	Refundable *done = refundables;

	refundables = done->next;
	finish(done, give_back);
	pfree(done);
}

/* Finish all that was made at this level or deeper. */
static void
finish_from(int level, bool give_back)
{
	while (refundables != NULL && refundables->level >= level)
		finish_last(give_back);
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			if (refundables != NULL)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has verified with on_abort => 'refund', or adjusted usage")));
			break;
		case XACT_EVENT_COMMIT:
			finish_from(0, false);
			break;
		case XACT_EVENT_ABORT:
			finish_from(0, true);
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine,
				 SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
		finish_from(level, true);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		for (Refundable *r = refundables; r != NULL && r->level >= level; r = r->next)
			r->level = level - 1;
}

/*
 * Note a charge that is about to be made.  From here on the meter stays open,
 * until ak_refund_drop() or the transaction's end.  An error before
 * ak_refund_keep() gives nothing back.
 */
void
ak_refund_prepare(const AkCharge *charge)
{
	static bool registered = false;
	Refundable *refundable;
	Size		size;

	if (!registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		RegisterSubXactCallback(subxact_callback, NULL);
		registered = true;
	}
	/* Only the limits there are. */
	size = offsetof(AkCharge, limits) + charge->nlimits * sizeof(AkLimit);
	refundable = MemoryContextAlloc(TopMemoryContext,
									offsetof(Refundable, charge) + size);
	refundable->level = GetCurrentTransactionNestLevel();
	refundable->is_charged = false;
	memcpy(&refundable->charge, charge, size);
	refundable->next = refundables;
	pg_atomic_fetch_add_u32(&database_of(charge)->refundable, 1);
	refundables = refundable;
}

/* The charge noted last was made, like this. */
void
ak_refund_keep(const AkCharge *charge)
{
	memcpy(refundables->charge.limits, charge->limits,
		   charge->nlimits * sizeof(AkLimit));
	refundables->is_charged = true;
}

/* The charge noted last was not made: there is nothing to give back. */
void
ak_refund_drop(void)
{
	finish_last(false);
}
