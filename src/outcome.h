/*-------------------------------------------------------------------------
 *
 * outcome.h
 *	  Outcomes of a verification, in the order in which they are decided.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_OUTCOME_H
#define APIKEYS_OUTCOME_H

typedef enum AkOutcome
{
	AK_MALFORMED,
	AK_NOT_FOUND,
	AK_DISABLED,
	AK_EXPIRED,
	AK_FORBIDDEN,
	AK_INSUFFICIENT_PERMISSIONS,
	AK_RATE_LIMITED,
	AK_USAGE_EXCEEDED,
	AK_VALID,

	/* Of a reservation that was admitted; its record has a negative cost. */
	AK_SETTLED,
	AK_RELEASED
} AkOutcome;

#define AK_OUTCOMES (AK_RELEASED + 1)

extern const char *ak_outcome_name(AkOutcome outcome);

#endif							/* APIKEYS_OUTCOME_H */
