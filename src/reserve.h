/*-------------------------------------------------------------------------
 *
 * reserve.h
 *	  Reservations: an amount held now, of which what was used is charged later.
 *
 * They are in shared memory, all of them guarded by the reservations lock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_RESERVE_H
#define APIKEYS_RESERVE_H

#include "lib/ilist.h"
#include "utils/hsearch.h"

#include "charge.h"

#define AK_HOLDS_MAX 8			/* limits that one reservation is held to */

/* What a reservation holds of one limit. */
typedef struct AkHold
{
	MeterKey	key;
	int64		amount;			/* of a quota or of credits */
	int64		emission;		/* of a rate */
	int64		lost;			/* of credits, as in AkLimit */
	int64		arrival;		/* of a rate, as in AkLimit, unless the meter was
								 * closed meanwhile: then unset, with life 0 */
	uint32		life;
} AkHold;

typedef enum AkReservationState
{
	AK_PENDING,					/* being decided on */
	AK_HELD,
	AK_SETTLING,				/* claimed by who settles or releases it */
	AK_ENDED_SETTLED,			/* remembered until its deadline */
	AK_ENDED_RELEASED			/* likewise, for a while */
} AkReservationState;

/* A copy of a database holds reservations of the same ids. */
typedef struct AkReservationKey
{
	pg_uuid_t	id;
	uint32		generation;		/* of the database's slot */
} AkReservationKey;

typedef struct AkReservation
{
	AkReservationKey key;
	pg_uuid_t	key_id;
	AkReservationState state;
	dlist_node	node;			/* of its database's held ones, or of all
								 * that have ended */
	bool		is_written;		/* in the marks of a meter that was closed */
	TimestampTz charged_at;
	TimestampTz deadline;
	int64		max_cost;
	int			nholds;
	AkHold		holds[AK_HOLDS_MAX];
} AkReservation;

/* reservation_table.c; the caller holds no lock. */
extern Size ak_reservations_shmem_size(void);
extern void ak_reservations_shmem_init(void);
extern int	ak_reservations_held(AkDatabase *db, bool closing,
								 AkReservation **held);
extern void ak_reservations_put(AkDatabase *db, const AkReservation *held);
extern void ak_reservations_forget(uint32 generation, bool closing);

/* reservation_table.c; the caller holds the reservations lock. */
extern HTAB *ak_reservations;
extern AkReservation *ak_reservation_find(const AkReservationKey *key);
extern AkReservation *ak_reservation_enter(const AkReservationKey *key);
extern void ak_reservation_remove(AkReservation *r);
extern bool ak_reservation_has_ended(const AkReservation *r);
extern void ak_reservation_hold(AkDatabase *db, AkReservation *r);
extern void ak_reservation_claim(AkDatabase *db, AkReservation *r);
extern void ak_reservation_end(AkReservation *r, AkReservationState state);

/* reserve.c */
extern void ak_reservation_prepare(const AkReservationKey *key, TimestampTz now,
								   TimestampTz deadline);

/* reserve.c: of one that the caller has claimed. */
extern void ak_reservation_charge(const AkReservation *r, int64 used,
								  AkCharge *charge);
extern void ak_reservation_end_claim(AkDatabase *db,
									 const AkReservation *claimed,
									 AkReservationState state);
extern void ak_reservation_end_record(const AkReservation *r,
									  AkOutcome outcome, int64 used,
									  AkRecord *record);

/* release.c */
extern void ak_reservations_release_due(AkDatabase *db);

#endif							/* APIKEYS_RESERVE_H */
