/*-------------------------------------------------------------------------
 *
 * reserve.h
 *	  What reserve.c needs to know of the table of reservations.
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
extern AkReservation *ak_reservation_enter(const AkReservationKey *key,
										   TimestampTz now);
extern void ak_reservation_remove(const AkReservation *r);
extern void ak_reservations_remove_ended(TimestampTz now, bool before_deadline);
extern void ak_reservation_hold(AkDatabase *db, AkReservation *r);
extern void ak_reservation_claim(AkDatabase *db, AkReservation *r);

#endif							/* APIKEYS_RESERVE_H */
