/*-------------------------------------------------------------------------
 *
 * charges.c
 *	  Read the argument "charges": what a request costs, by the names of limits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "apikeys.h"

/* What "charges" may hold beside costs; no limit has this name. */
#define REQUEST_ID_NAME "request_id"

static void
bad_charges(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid charges"),
			 errdetail("%s", detail),
			 errhint("Give a cost by the name of a limit, such as {\"tokens\": 500}; \"request_id\" is a text.")));
}

/* A JSON number as a cost. */
static int64
cost_of(const JsonbValue *value)
{
	Datum		number;
	Datum		back;

	if (value->type != jbvNumeric)
		bad_charges("A cost is a whole number.");
	number = NumericGetDatum(value->val.numeric);
	if (DatumGetBool(DirectFunctionCall2(numeric_lt, number,
										 DirectFunctionCall1(int8_numeric, Int64GetDatum(0)))) ||
		DatumGetBool(DirectFunctionCall2(numeric_gt, number,
										 DirectFunctionCall1(int8_numeric, Int64GetDatum(AK_COST_MAX)))))
		bad_charges("A cost is between 0 and 2147483648.");
	back = DirectFunctionCall1(numeric_int8, number);
	if (!DatumGetBool(DirectFunctionCall2(numeric_eq, number,
										  DirectFunctionCall1(int8_numeric, back))))
		bad_charges("A cost is a whole number.");
	return DatumGetInt64(back);
}

static void
read_request_id(const JsonbValue *value, AkNamedCosts *costs)
{
	if (value->type != jbvString || value->val.string.len < 1 ||
		value->val.string.len >= AK_ID_LEN)
		bad_charges("A request_id is a text of 1 to 255 bytes.");
	memcpy(costs->request_id, value->val.string.val, value->val.string.len);
	costs->request_id[value->val.string.len] = '\0';
}

/*
 * Read the argument "charges": an object of costs by the names of limits, and
 * the request's id.
 * Errors: 22023.
 */
void
ak_charges_read(Datum charges, AkNamedCosts *costs)
{
	Jsonb	   *json = DatumGetJsonbP(charges);
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;

	costs->n = 0;
	costs->request_id[0] = '\0';
	if (!JB_ROOT_IS_OBJECT(json))
		bad_charges("The argument is no JSON object.");
	it = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		AkNamedCost *cost;

		if (token != WJB_KEY)
			continue;
		if (value.val.string.len == strlen(REQUEST_ID_NAME) &&
			memcmp(value.val.string.val, REQUEST_ID_NAME, value.val.string.len) == 0)
		{
			(void) JsonbIteratorNext(&it, &value, true);
			read_request_id(&value, costs);
			continue;
		}
		if (costs->n == AK_LIMITS_MAX)
			bad_charges("There are too many names.");
		if (value.val.string.len < 1 ||
			value.val.string.len >= AK_LIMIT_NAME_LEN)
			bad_charges("The name of a limit has between 1 and 63 bytes.");
		cost = &costs->costs[costs->n++];
		memcpy(cost->name, value.val.string.val, value.val.string.len);
		cost->name[value.val.string.len] = '\0';
		cost->found = false;
		(void) JsonbIteratorNext(&it, &value, true);
		cost->cost = cost_of(&value);
	}
}
