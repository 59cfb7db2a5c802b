/*-------------------------------------------------------------------------
 *
 * reservation_table.c
 *	  Where reservations are kept: a hash table in shared memory.
 *
 * All of it is guarded by the reservations lock, which is not held while counts
 * change: who sets the state of a reservation to settling is alone in it, and
 * does so only while the meter is open, lest the closing have written it down as
 * held.  Closing forgets only what it has written down.
 *
 * A worker goes through what its database holds only when a deadline may have
 * come ("held_until").  What has ended stays until its place is needed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/inval.h"

#include "apikeys.h"
#include "reserve.h"

PG_FUNCTION_INFO_V1(apikeys_held_reservations);

HTAB	   *ak_reservations;

Size
ak_reservations_shmem_size(void)
{
	return hash_estimate_size(ak_max_reservations, sizeof(AkReservation));
}

void
ak_reservations_shmem_init(void)
{
	HASHCTL		ctl = {
		.keysize = sizeof(AkReservationKey),
		.entrysize = sizeof(AkReservation)
	};

	ak_reservations = ShmemInitHash("apikeys reservations",
									ak_max_reservations, ak_max_reservations,
									&ctl, HASH_ELEM | HASH_BLOBS);
}

/* ----- the table; the caller holds its lock ----- */

AkReservation *
ak_reservation_find(const AkReservationKey *key)
{
	return hash_search(ak_reservations, key, HASH_FIND, NULL);
}

bool
ak_reservation_has_ended(const AkReservation *r)
{
	return r->state == AK_ENDED_SETTLED || r->state == AK_ENDED_RELEASED;
}

void
ak_reservation_remove(AkReservation *r)
{
	if (r->state == AK_HELD || ak_reservation_has_ended(r))
		dlist_delete(&r->node);
	hash_search(ak_reservations, &r->key, HASH_REMOVE, NULL);
}

/*
 * A new reservation, or NULL if there is no room.  What ended first makes room.
 */
AkReservation *
ak_reservation_enter(const AkReservationKey *key)
{
	if (hash_get_num_entries(ak_reservations) >= ak_max_reservations)
	{
		if (dlist_is_empty(&ak_shared->ended))
			return NULL;
		ak_reservation_remove(dlist_head_element(AkReservation, node,
												 &ak_shared->ended));
	}
	return hash_search(ak_reservations, key, HASH_ENTER_NULL, NULL);
}

/* Hold it, unless its database is forgotten, and it with it. */
void
ak_reservation_hold(AkDatabase *db, AkReservation *r)
{
	if (r->key.generation != db->generation)
	{
		ak_reservation_remove(r);
		return;
	}
	r->state = AK_HELD;
	dlist_push_tail(&db->held, &r->node);
	db->held_until = Min(db->held_until, r->deadline);
	pg_atomic_fetch_add_u32(&db->reserved, 1);
}

/* Who calls this alone may settle it. */
void
ak_reservation_claim(AkDatabase *db, AkReservation *r)
{
	r->state = AK_SETTLING;
	dlist_delete(&r->node);
	pg_atomic_fetch_sub_u32(&db->reserved, 1);
}

/* The end of one that was claimed. */
void
ak_reservation_end(AkReservation *r, AkReservationState state)
{
	r->state = state;
	dlist_push_tail(&ak_shared->ended, &r->node);
}

/* ----- all of a database; the caller holds no lock ----- */

/*
 * The reservations that a database holds, in the current memory context.  With
 * "closing", the meter is closed, and the caller writes them down.
 */
int
ak_reservations_held(AkDatabase *db, bool closing, AkReservation **held)
{
	int			capacity = pg_atomic_read_u32(&db->reserved) + 64;
	int			n = 0;
	HASH_SEQ_STATUS seq;
	AkReservation *r;

	/* One that is made meanwhile may be left out: it stays in memory. */
	*held = palloc(capacity * sizeof(AkReservation));
	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	hash_seq_init(&seq, ak_reservations);
	while ((r = hash_seq_search(&seq)) != NULL)
	{
		bool		taken = r->key.generation == db->generation &&
			r->state == AK_HELD && n < capacity;

		/* A closing before this one may have failed. */
		if (closing && r->key.generation == db->generation)
			r->is_written = taken;
		if (taken)
			(*held)[n++] = *r;
	}
	LWLockRelease(ak_shared->reservations);
	return n;
}

/*
 * Put a reservation back that was held when the meter was closed.  If there is
 * no room for it, it stays charged.
 */
void
ak_reservations_put(AkDatabase *db, const AkReservation *held)
{
	AkReservation *r;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = ak_reservation_find(&held->key);
	if (r == NULL)
	{
		r = ak_reservation_enter(&held->key);
		if (r != NULL)
		{
			*r = *held;
			ak_reservation_hold(db, r);
		}
	}
	LWLockRelease(ak_shared->reservations);
	if (r == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("there is no room for a reservation that was held when the meter was closed"),
				 errdetail("Its %lld stay charged.", (long long) held->max_cost),
				 errhint("Raise \"%s\" (now %d) and restart the server.",
						 "apikeys.max_reservations", ak_max_reservations)));
}

/*
 * Forget the reservations of a slot's generation: when its meter is closing,
 * those that are written down, else all.
 */
void
ak_reservations_forget(uint32 generation, bool closing)
{
	HASH_SEQ_STATUS seq;
	AkReservation *r;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	hash_seq_init(&seq, ak_reservations);
	while ((r = hash_seq_search(&seq)) != NULL)
		if (r->key.generation == generation &&
			(!closing || (r->state == AK_HELD && r->is_written)))
		{
			if (r->state == AK_HELD)
				pg_atomic_fetch_sub_u32(&ak_shared->databases[r->holds[0].key.database].reserved, 1);
			ak_reservation_remove(r);
		}
	LWLockRelease(ak_shared->reservations);
}

/*
 * apikeys.held_reservations() -> SETOF (id uuid, key_id uuid, max_cost bigint,
 *										 created_at, deadline timestamptz)
 */
Datum
apikeys_held_reservations(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	AkReservation *held;
	int			n;

	AcceptInvalidationMessages();
	n = ak_reservations_held(ak_catalog()->db, false, &held);
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		Datum		values[5] = {
			UUIDPGetDatum(&held[i].key.id),
			UUIDPGetDatum(&held[i].key_id),
			Int64GetDatum(held[i].max_cost),
			TimestampTzGetDatum(held[i].charged_at),
			TimestampTzGetDatum(held[i].deadline)
		};
		bool		nulls[5] = {0};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
