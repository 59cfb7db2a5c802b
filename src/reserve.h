/*-------------------------------------------------------------------------
 *
 * reserve.h
 *	  What the files of reservations share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_RESERVE_H
#define APIKEYS_RESERVE_H

#include "utils/hsearch.h"

#include "apikeys.h"

/* reservation_table.c; the caller holds the reservations lock. */
extern HTAB *ak_reservations;
extern AkReservation *ak_reservation_find(const AkReservationKey *key);
extern AkReservation *ak_reservation_enter(const AkReservationKey *key);
extern void ak_reservation_remove(AkReservation *r);
extern bool ak_reservation_has_ended(const AkReservation *r);
extern void ak_reservation_hold(AkDatabase *db, AkReservation *r);
extern void ak_reservation_claim(AkDatabase *db, AkReservation *r);
extern void ak_reservation_end(AkReservation *r, AkReservationState state);

/* reserve.c: of one that the caller has claimed. */
extern void ak_reservation_charge(const AkReservation *r, int64 used,
								  AkCharge *charge);
extern void ak_reservation_end_claim(AkDatabase *db,
									 const AkReservation *claimed,
									 AkReservationState state);
extern void ak_reservation_end_record(const AkReservation *r,
									  AkOutcome outcome, int64 used,
									  AkRecord *record);

#endif							/* APIKEYS_RESERVE_H */
