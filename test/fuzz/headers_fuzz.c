/*-------------------------------------------------------------------------
 *
 * headers_fuzz.c
 *	  Fuzz the headers of answers (src/http_headers.c, parts of limits.c).
 *
 * An input is limits, with names of any bytes, and what was used of them.  The
 * fields of the answer are read back by the grammar of RFC 8941.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fuzz.h"
#include "http.h"

#define LIMITS_MAX 4
#define FIELD_INTEGER_MAX INT64CONST(999999999999999)

bool		ak_legacy_rate_headers = true;

/* A limit's name is percent-encoded: its bytes come back. */
static int
hex(char c)
{
	CHECK((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'));
	return c <= '9' ? c - '0' : c - 'A' + 10;
}

static void
check_text(const char *value)
{
	const char *c = ak_header_text(value);

	for (; *value != '\0'; value++)
	{
		CHECK(*c >= ' ' && *c <= '~');
		if (*c == '%')
		{
			CHECK((unsigned char) *value == hex(c[1]) * 16 + hex(c[2]));
			c += 3;
		}
		else
			CHECK(*c++ == *value);
	}
	CHECK(*c == '\0');
}

/* Goes past "name";x=1;y=2 and returns the numbers. */
static const char *
read_member(const char *c, const char *name, const char *keys,
			int64 numbers[2])
{
	const char *expected = ak_header_text(name);

	CHECK(*c++ == '"');
	for (; *c != '"'; c++)
	{
		if (*c == '\\')
		{
			c++;
			CHECK(*c == '"' || *c == '\\');
		}
		CHECK(*c >= ' ' && *c <= '~');
		CHECK(*c == *expected++);
	}
	CHECK(*expected == '\0');
	c++;
	for (int i = 0; i < 2; i++)
	{
		char	   *end;

		CHECK(*c++ == ';');
		CHECK(*c++ == keys[i]);
		CHECK(*c++ == '=');
		CHECK(*c >= '0' && *c <= '9');	/* none is below 0 */
		numbers[i] = strtoll(c, &end, 10);
		c = end;
	}
	return c;
}

/*
 * A rate's window is what fills a burst, in whole seconds: one second less would
 * be too short.  A nanosecond in a million seconds is forgiven.
 */
static void
check_window(const AkRate *rate, int64 window, int64 reset)
{
	__int128	asked = (__int128) rate->burst * rate->period;
	__int128	second = (__int128) rate->amount * USECS_PER_SEC;

	CHECK(window * second >= asked - asked / INT64CONST(500000000000000));
	CHECK(window == 1 || (window - 1) * second < asked);
	CHECK(reset <= window);
}

static void
check_fields(const AkCharge *charge, const AkHeaders *headers)
{
	const char *policy = headers->headers[0].value;
	const char *state = headers->headers[1].value;
	int64		least = PG_INT64_MAX;
	bool		refused = false;

	CHECK(strcmp(headers->headers[0].name, "RateLimit-Policy") == 0);
	CHECK(strcmp(headers->headers[1].name, "RateLimit") == 0);
	for (int i = 0; i < charge->nlimits; i++)
	{
		const AkLimit *limit = &charge->limits[i];
		int64		window[2];
		int64		rest[2];

		if (limit->amount < 0)
			continue;			/* unlimited */
		if (policy != headers->headers[0].value)
		{
			CHECK(strncmp(policy, ", ", 2) == 0 && strncmp(state, ", ", 2) == 0);
			policy += 2;
			state += 2;
		}
		policy = read_member(policy, limit->name, "qw", window);
		state = read_member(state, limit->name, "rt", rest);
		CHECK(window[0] == Min(limit->amount, FIELD_INTEGER_MAX));
		CHECK(window[1] > 0 && window[1] <= FIELD_INTEGER_MAX);
		CHECK(rest[0] <= window[0]);
		CHECK(rest[1] <= FIELD_INTEGER_MAX);
		if (limit->key.period == AK_RATE)
			check_window(&limit->rate, window[1], rest[1]);
		if (limit->refuses || !refused)
		{
			least = limit->refuses && !refused ? rest[0] : Min(least, rest[0]);
			refused |= limit->refuses;
		}
	}
	CHECK(*policy == '\0' && *state == '\0');

	/* Of the limits that refuse if any does, the one that leaves least. */
	CHECK(headers->n == 5);
	CHECK(strcmp(headers->headers[3].name, "X-RateLimit-Remaining") == 0);
	CHECK(strtoll(headers->headers[3].value, NULL, 10) == least);
	CHECK(headers->headers[4].value[0] != '-');
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	FuzzInput	input = {data, size};
	AkCharge   *charge = palloc0(sizeof(AkCharge));
	AkDecided	decided = {.charge = charge};
	AkHeaders	headers = {0};
	bool		any = false;

	charge->now = fuzz_number(&input, 8) % (INT64CONST(70000) * USECS_PER_DAY);
	ak_period_at(fuzz_below(&input, AK_CREDITS), AK_CALENDAR, charge->now,
				 &charge->span);
	charge->nlimits = 1 + fuzz_below(&input, LIMITS_MAX);
	for (int i = 0; i < charge->nlimits; i++)
	{
		AkLimit    *limit = &charge->limits[i];
		Interval	period = {.time = 1 + fuzz_number(&input, 5)};
		size_t		length = fuzz_below(&input, AK_LIMIT_NAME_LEN);

		limit->refuses = fuzz_below(&input, 2);
		limit->amount = fuzz_number(&input, 1 + fuzz_below(&input, 7));
		limit->count.charged = fuzz_number(&input, 8);
		if (i == 0)
			limit->key.period = AK_MONTH;
		else
		{
			limit->key.period = AK_RATE;
			if (!ak_rate_make(1 + fuzz_number(&input, 3), &period,
							  limit->amount, &limit->rate))
				CHECK(ak_rate_make(limit->amount = 1, &period, 1, &limit->rate));

			/* An arrival time before now, or ahead of it, at most a century. */
			limit->count.charged = (uint64) limit->count.charged %
				(charge->now * 1000 + INT64CONST(36525) * USECS_PER_DAY * 1000);
		}
		if (i == 0)
		{
			limit->count.charged &= PG_INT64_MAX;
			limit->amount -= fuzz_below(&input, 8) == 0 ? limit->amount + 1 : 0;
		}
		any |= limit->amount >= 0;
		limit->name = fuzz_string(input.data, Min(length, input.size));
		input.data += Min(length, input.size);
		input.size -= Min(length, input.size);
		check_text(limit->name);
	}
	ak_headers_of_limits(&headers, &decided);
	if (any)
		check_fields(charge, &headers);
	else
		CHECK(headers.n == 0);
	fuzz_end();
	return 0;
}
