/*-------------------------------------------------------------------------
 *
 * secret.c
 *	  Make and parse secrets; make time-ordered uuids.
 *
 * A secret is <prefix>_<32 random base62><6 base62 checksum>.  The checksum is
 * the CRC-32 (IEEE 802.3) of all before it, so that a mistyped or invented
 * secret is turned away without a look at any table.  Buffers that held a
 * secret are the caller's to clear.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/time.h>

#include "common/sha2.h"
#include "utils/builtins.h"
#include "utils/pg_crc.h"

#include "apikeys.h"

StaticAssertDecl(AK_DIGEST_LEN == PG_SHA256_DIGEST_LENGTH, "digest is SHA-256");

static const char base62[] =
"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

PG_FUNCTION_INFO_V1(apikeys_uuidv7);

static bool
is_prefix(const char *prefix, int length)
{
	if (length < 1 || length > AK_PREFIX_MAX)
		return false;
	for (int i = 0; i < length; i++)
		if (!ak_is_base62(prefix[i]) && prefix[i] != '_')
			return false;
	return true;
}

bool
ak_prefix_is_valid(const char *prefix)
{
	return is_prefix(prefix, strnlen(prefix, AK_PREFIX_MAX + 1));
}

/* The checksum of secret[0..length), as six base62 digits. */
static void
checksum(const char *secret, int length, char check[AK_SECRET_CHECK])
{
	pg_crc32	crc;

	INIT_TRADITIONAL_CRC32(crc);
	COMP_TRADITIONAL_CRC32(crc, secret, length);
	FIN_TRADITIONAL_CRC32(crc);
	for (int i = AK_SECRET_CHECK - 1; i >= 0; i--)
	{
		check[i] = base62[crc % 62];
		crc /= 62;
	}
}

/*
 * Whether the text has the form of a secret and its checksum is right.  What
 * follows the prefix has a fixed length, so the parse goes from the end: a
 * prefix may hold underscores itself.
 */
bool
ak_secret_is_well_formed(const char *secret, int length)
{
	int			prefix_len = length - AK_SECRET_TAIL - 1;
	char		check[AK_SECRET_CHECK];

	if (!is_prefix(secret, prefix_len) || secret[prefix_len] != '_')
		return false;
	for (int i = prefix_len + 1; i < length; i++)
		if (!ak_is_base62(secret[i]))
			return false;
	checksum(secret, length - AK_SECRET_CHECK, check);
	return memcmp(check, secret + length - AK_SECRET_CHECK,
				  AK_SECRET_CHECK) == 0;
}

/*
 * Whether a secret begins somewhere before an underscore, the last before its
 * random characters, and ends where they do.
 */
static bool
ends_secret(const char *text, const char *underscore, const char *end)
{
	for (const char *start = underscore - 1;
		 start >= text && underscore - start <= AK_PREFIX_MAX &&
		 (ak_is_base62(*start) || *start == '_'); start--)
		if (ak_secret_is_well_formed(start, end - start))
			return true;
	return false;
}

/*
 * Mask the secrets in a text, all but their prefix; what else there is stays as
 * it is.  Of a text that was cut, its end may be a part of one.
 */
void
ak_secret_mask(char *text, int length, bool is_cut)
{
	char	   *end = text + length;
	char	   *c = text;

	while ((c = memchr(c, '_', end - c)) != NULL)
	{
		char	   *tail = c + 1;
		char	   *after = tail;

		while (after < end && after - tail < AK_SECRET_TAIL && ak_is_base62(*after))
			after++;
		if (after - tail == AK_SECRET_TAIL ? ends_secret(text, c, after) :
			is_cut && after == end && after - tail > AK_START_RANDOM)
			memset(tail, AK_MASK, after - tail);
		c = after;
	}
}

/*
 * Make a new secret.  The random characters are drawn without bias: bytes from
 * which a remainder by 62 would favour some digits are drawn again.
 */
void
ak_secret_make(const char *prefix, char secret[AK_SECRET_MAX + 1])
{
	const uint8 unbiased = 256 - 256 % 62;
	uint8		pool[2 * AK_SECRET_RANDOM];
	int			n = 0;
	int			length = strlen(prefix);

	Assert(ak_prefix_is_valid(prefix));
	ak_redact_learn(prefix, length);
	memcpy(secret, prefix, length);
	secret[length++] = '_';
	while (n < AK_SECRET_RANDOM)
	{
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
		for (int i = 0; i < (int) sizeof(pool) && n < AK_SECRET_RANDOM; i++)
			if (pool[i] < unbiased)
				secret[length + n++] = base62[pool[i] % 62];
	}
	explicit_bzero(pool, sizeof(pool));
	length += AK_SECRET_RANDOM;
	checksum(secret, length, secret + length);
	secret[length + AK_SECRET_CHECK] = '\0';
}

/* How much of a well-formed secret may be shown. */
int
ak_secret_start_length(const char *secret)
{
	return strlen(secret) - AK_SECRET_TAIL + AK_START_RANDOM;
}

/*
 * A uuid of version 7 (RFC 9562): 48 bits of Unix time in milliseconds, 12
 * bits of its fraction (method 3), 62 random bits.  Within a backend they
 * ascend strictly: a clock that stands still or steps back is advanced by one
 * step of the fraction.
 */
void
ak_uuidv7(pg_uuid_t *uuid)
{
	static uint64 last = 0;
	struct timeval now;
	uint64		ticks;			/* of 1/4096 millisecond */
	unsigned char *out = uuid->data;

	gettimeofday(&now, NULL);
	ticks = (uint64) now.tv_sec * 1000 * 4096 +
		(uint64) now.tv_usec * 4096 / 1000;
	if (ticks <= last)
		ticks = last + 1;
	last = ticks;

	if (!pg_strong_random(out + 8, UUID_LEN - 8))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	for (int i = 0; i < 6; i++)
		out[i] = (unsigned char) (ticks >> (12 + 8 * (5 - i)));
	out[6] = 0x70 | ((ticks >> 8) & 0x0f);
	out[7] = ticks & 0xff;
	out[8] = 0x80 | (out[8] & 0x3f);
}

/* As text, for messages and headers. */
char *
ak_uuid_text(const pg_uuid_t *uuid)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(uuid)));
}

/* apikeys.uuidv7() -> uuid */
Datum
apikeys_uuidv7(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *uuid = palloc(sizeof(pg_uuid_t));

	ak_uuidv7(uuid);
	PG_RETURN_UUID_P(uuid);
}
