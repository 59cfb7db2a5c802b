/*-------------------------------------------------------------------------
 *
 * verify.h
 *	  A request, the decision about it, and its answer: for what verifies.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_VERIFY_H
#define APIKEYS_VERIFY_H

#include "apikeys.h"
#include "reserve.h"

/* Columns of apikeys.verification. */
enum
{
	OUT_VALID,
	OUT_CODE,
	OUT_KEY_ID,
	OUT_API_ID,
	OUT_NAME,
	OUT_USER_ID,
	OUT_PLAN_ID,
	OUT_PLAN_NAME,
	OUT_PERMISSIONS,
	OUT_METADATA,
	OUT_CURRENT_USAGE,
	OUT_LIMIT,
	OUT_REMAINING,
	OUT_RESET_TIME,
	OUT_PERIOD,
	OUT_RETRY_AFTER,
	OUT_EXPIRES_AT,
	OUT_LIMITS,
	OUT_CREDITS,
	OUT_REPEATED,
	OUT_COLUMNS
};

typedef struct Request
{
	NullableDatum secret;
	const inet *ip_address;		/* NULL: not told */
	int64		cost;
	char	   *permissions;	/* expression, checked; NULL: none asked for */
	char	   *api_id;			/* NULL: any */
	AkNamedCosts *costs;		/* NULL: cost for every limit */
	bool		refund;			/* if the transaction aborts */
	const AkReservationKey *reservation;	/* to take a place for before the
											 * charge; NULL: none */
	TimestampTz deadline;		/* of that */
	TimestampTz now;
	AkRecord   *record;
} Request;

typedef union RecordSpace
{
	AkRecord	record;
	char		space[AK_RECORD_MAX];
} RecordSpace;

typedef struct Decision
{
	AkOutcome	outcome;
	bool		key_is_known;	/* key and subject are set */
	AkKey		key;
	AkSubject	subject;
	bool		is_metered;		/* charge is set */
	bool		is_charged;		/* ... and made, and remembered with it */
	AkCharge	charge;
} Decision;

extern void ak_decide(Request *request, Decision *decision);
extern void ak_answer(const Request *request, const Decision *decision,
					  Datum values[OUT_COLUMNS], bool nulls[OUT_COLUMNS]);

#endif							/* APIKEYS_VERIFY_H */
