/*-------------------------------------------------------------------------
 *
 * secret_fuzz.c
 *	  Fuzz the parser of secrets (src/secret.c).
 *
 * An input is a secret; it is also tried with the checksum that it should
 * have, with each character changed then, and as a prefix to make one with.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "apikeys.h"
#include "fuzz.h"

static const char digits[] =
"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/* What secret.c calls of redact.c. */
void
ak_redact_learn(const char *prefix, int length)
{
	CHECK(length > 0 && length <= AK_PREFIX_MAX);
}

/* Whether length characters are of base62, or also underscores. */
static bool
are_of(const char *text, int length, bool or_underscores)
{
	for (int i = 0; i < length; i++)
		if (text[i] == '\0' ||
			(strchr(digits, text[i]) == NULL && !(or_underscores && text[i] == '_')))
			return false;
	return true;
}

/* prefix, underscore, 38 characters */
static bool
has_shape(const char *text, int length)
{
	int			prefix = length - 39;

	return prefix >= 1 && prefix <= 32 && are_of(text, prefix, true) &&
		text[prefix] == '_' && are_of(text + prefix + 1, 38, false);
}

static void
put_checksum(char *text, int length)
{
	uint32		crc = fuzz_crc32(text, length - 6);

	for (int i = 1; i <= 6; i++)
	{
		text[length - i] = digits[crc % 62];
		crc /= 62;
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char	   *text = fuzz_copy(data, size);
	char	   *prefix = fuzz_string(data, size);
	char	   *mended = fuzz_copy(data, size);
	bool		mended_is_right = false;

	if (size >= 6)
	{
		put_checksum(mended, size);
		mended_is_right = has_shape(mended, size);
		CHECK(ak_secret_is_well_formed(mended, size) == mended_is_right);
	}
	CHECK(ak_secret_is_well_formed(text, size) ==
		  (mended_is_right && memcmp(text, mended, size) == 0));

	/*
	 * No character of it can be another, nor two be swapped (but for chance,
	 * where one is of the checksum).
	 */
	if (mended_is_right)
	{
		for (size_t i = 0; i < size; i++)
		{
			char		right = mended[i];

			mended[i] = digits[(right + data[size - 1]) % 62];
			CHECK(ak_secret_is_well_formed(mended, size) == (mended[i] == right));
			mended[i] = right ^ 0x80;
			CHECK(!ak_secret_is_well_formed(mended, size));
			mended[i] = right;
			if (i > 0 && i != size - 6 && mended[i - 1] != right)
			{
				mended[i] = mended[i - 1];
				mended[i - 1] = right;
				CHECK(!ak_secret_is_well_formed(mended, size));
				mended[i - 1] = mended[i];
				mended[i] = right;
			}
		}
		CHECK(ak_secret_is_well_formed(mended, size));
	}

	CHECK(ak_prefix_is_valid(prefix) ==
		  (strlen(prefix) >= 1 && strlen(prefix) <= 32 &&
		   are_of(prefix, strlen(prefix), true)));
	if (ak_prefix_is_valid(prefix))
	{
		int			length = strlen(prefix);
		char		secret[AK_SECRET_MAX + 1];
		char		another[AK_SECRET_MAX + 1];

		ak_secret_make(prefix, secret);
		ak_secret_make(prefix, another);
		CHECK(strlen(secret) == length + 39);
		CHECK(strncmp(secret, prefix, length) == 0);
		CHECK(has_shape(secret, length + 39));
		CHECK(ak_secret_is_well_formed(secret, length + 39));
		CHECK(ak_secret_start_length(secret) == length + 1 + 4);
		CHECK(strcmp(secret, another) != 0);
	}
	fuzz_end();
	return 0;
}
