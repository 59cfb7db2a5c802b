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
extern AkReservation *ak_reservation_enter(const AkReservationKey *key);
extern void ak_reservation_remove(AkReservation *r);
extern bool ak_reservation_has_ended(const AkReservation *r);
extern void ak_reservation_hold(AkDatabase *db, AkReservation *r);
extern void ak_reservation_claim(AkDatabase *db, AkReservation *r);
extern void ak_reservation_end(AkReservation *r, AkReservationState state);

#endif							/* APIKEYS_RESERVE_H */
