/*-------------------------------------------------------------------------
 *
 * release.c
 *	  Give back what reservations hold past their deadline.  Runs in a
 *	  database's worker.
 *
 * Each is claimed as its caller would claim it to settle it, so that it ends
 * once.  One that cannot be given back now is held as before.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"

#include "reserve.h"
#include "verify.h"
#include "worker.h"

static bool
is_due(const AkDatabase *db, const AkReservation *r, TimestampTz now)
{
	return r->key.generation == db->generation && r->state == AK_HELD &&
		r->deadline <= now;
}

/* Claim one that was due.  False if its caller has settled it meanwhile. */
static bool
claim_due(AkDatabase *db, const AkReservationKey *key, AkReservation *claimed)
{
	AkReservation *r;
	bool		claims;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = ak_reservation_find(key);
	claims = r != NULL && is_due(db, r, GetCurrentTimestamp());
	if (claims)
	{
		ak_reservation_claim(db, r);
		*claimed = *r;
	}
	LWLockRelease(ak_shared->reservations);
	return claims;
}

typedef struct Release
{
	AkDatabase *db;
	const AkReservation *claimed;
} Release;

/* An error, or the worker's end: it is held as before. */
static void
abandon_release(int code, Datum arg)
{
	const Release *release = (Release *) DatumGetPointer(arg);

	ak_reservation_end_claim(release->db, release->claimed, AK_HELD);
}

/* Give back a claimed reservation, or hold it as before if that cannot be now. */
static void
release_claimed(AkDatabase *db, const AkReservation *claimed)
{
	Release		release = {.db = db,.claimed = claimed};
	AkCharge	charge;
	RecordSpace record;
	bool		settled;

	ak_reservation_charge(claimed, 0, &charge);
	PG_ENSURE_ERROR_CLEANUP(abandon_release, PointerGetDatum(&release));
	{
		settled = ak_meter_release(&charge);
	}
	PG_END_ENSURE_ERROR_CLEANUP(abandon_release, PointerGetDatum(&release));
	ak_reservation_end_claim(db, claimed, settled ? AK_ENDED_RELEASED : AK_HELD);
	if (!settled)
		return;
	ak_reservation_end_record(claimed, AK_RELEASED, 0, &record.record);
	(void) ak_history_append(db, &record.record, true);
}

typedef struct DueReservations
{
	AkDatabase *db;
	AkReservationKey *keys;
	int			n;
} DueReservations;

static void
release_due(void *arg)
{
	const DueReservations *due = arg;
	AkReservation claimed;

	for (int i = 0; i < due->n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (claim_due(due->db, &due->keys[i], &claimed))
			release_claimed(due->db, &claimed);
	}
}

/*
 * Find those past their deadline.  They count as due until they are released,
 * lest one that cannot be is forgotten.
 */
static void
find_due(DueReservations *due, int max)
{
	TimestampTz now = GetCurrentTimestamp();
	dlist_iter	iter;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	due->db->held_until = DT_NOEND;
	dlist_foreach(iter, &due->db->held)
	{
		const AkReservation *r = dlist_container(AkReservation, node, iter.cur);

		due->db->held_until = Min(due->db->held_until, r->deadline);
		if (due->n < max && is_due(due->db, r, now))
			due->keys[due->n++] = r->key;
	}
	LWLockRelease(ak_shared->reservations);
}

/*
 * Give back what is held past its deadline.  Only the database's worker may call
 * this.
 */
void
ak_reservations_release_due(AkDatabase *db)
{
	DueReservations due = {.db = db};
	int			max = pg_atomic_read_u32(&db->reserved);

	if (max == 0 || db->held_until > GetCurrentTimestamp())
		return;
	due.keys = palloc(max * sizeof(AkReservationKey));
	find_due(&due, max);
	if (due.n > 0)
		(void) ak_worker_transaction(release_due, &due);
	pfree(due.keys);
}
