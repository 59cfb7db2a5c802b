/*-------------------------------------------------------------------------
 *
 * address_fuzz.c
 *	  Fuzz the reading of X-Forwarded-For (src/http_address.c).
 *
 * The first line of an input is apikeys.trusted_proxies, the rest the header.
 * The answer is compared with that of a second reader, which splits the header
 * first, and makes every address one of IPv6.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "fuzz.h"
#include "http.h"
#include "utils/inet.h"

/* An input has at most 4200 bytes. */
#define ENTRIES_MAX 4201

char	   *ak_trusted_proxies;

/* An address and how many of its bits count; IPv4 as ::ffff:a.b.c.d. */
typedef struct Wide
{
	unsigned char address[16];
	int			bits;
} Wide;

static bool
read_wide(const char *text, Wide *wide)
{
	char		host[64];
	size_t		length = strcspn(text, "/");
	int			max = strchr(text, ':') ? 128 : 32;
	struct in_addr ip4;

	memset(wide, 0, sizeof(Wide));
	if (strlen(text) >= sizeof(host))
		return false;
	memcpy(host, text, length);
	host[length] = '\0';
	wide->bits = max;
	if (text[length] == '/')
	{
		wide->bits = 0;
		text += length + 1;
		if (*text == '\0' || strlen(text) > 3)
			return false;
		for (; *text != '\0'; text++)
		{
			if (*text < '0' || *text > '9')
				return false;
			wide->bits = wide->bits * 10 + *text - '0';
		}
		if (wide->bits > max)
			return false;
	}
	if (max == 128)
		return inet_pton(AF_INET6, host, wide->address) == 1;
	if (inet_pton(AF_INET, host, &ip4) != 1)
		return false;
	wide->address[10] = wide->address[11] = 0xff;
	memcpy(wide->address + 12, &ip4, 4);
	wide->bits += 96;
	return true;
}

static bool
holds(const Wide *network, const Wide *address)
{
	for (int bit = 0; bit < network->bits; bit++)
		if ((network->address[bit / 8] ^ address->address[bit / 8]) &
			(0x80 >> bit % 8))
			return false;

	/* A network of IPv6 that is wider than ::ffff:0:0/96 has no IPv4 in it. */
	return network->bits >= 96 ||
		memcmp(address->address, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) != 0;
}

/* Whether a list of networks has an address; says whether it is a list. */
static bool
is_listed(const char *list, const Wide *address, bool *valid)
{
	char	   *copy = pstrdup(list);
	bool		found = false;

	*valid = true;
	for (char *word = strtok(copy, ", \t"); word; word = strtok(NULL, ", \t"))
	{
		Wide		network;

		if (!read_wide(word, &network))
			*valid = false;
		else if (address && holds(&network, address))
			found = true;
	}
	return found;
}

/* An address of the header: a, [a], [a]:port or, for IPv4, a:port. */
static bool
read_entry(char *text, Wide *address)
{
	char	   *end = text + strlen(text);

	while (*text == ' ' || *text == '\t')
		text++;
	while (end > text && (end[-1] == ' ' || end[-1] == '\t'))
		*--end = '\0';
	if (end == text || end - text >= 64 || strchr(text, '/'))
		return false;
	if (*text == '[')
	{
		end = strchr(++text, ']');
		if (end == NULL || (end[1] != ':' && end[1] != '\0'))
			return false;
		*end = '\0';
	}
	else if (strchr(text, ':') == strrchr(text, ':'))
		text[strcspn(text, ":")] = '\0';
	return read_wide(text, address);
}

/* False if no address is known. */
static bool
find_client(const char *list, const char *header, Wide *client)
{
	char	   *copy = pstrdup(header);
	char	   *entries[ENTRIES_MAX];
	int			n = 0;
	bool		valid;

	for (char *at = copy;;)
	{
		entries[n++] = at;
		at = strchr(at, ',');
		if (at == NULL || n == ENTRIES_MAX)
			break;
		*at++ = '\0';
	}
	while (--n >= 0)
	{
		if (!read_entry(entries[n], client))
			return false;
		if (!is_listed(list, client, &valid))
			return true;
	}
	return true;
}

static void
compare(const char *header, const char *list)
{
	const inet *client = ak_client_address(header);
	Wide		wide;
	bool		known = list[strspn(list, ", \t")] != '\0' &&
		find_client(list, header, &wide);

	CHECK((client != NULL) == known);
	if (!known)
		return;
	CHECK(ip_bits(client) == ip_maxbits(client));
	if (ip_family(client) == PGSQL_AF_INET)
	{
		CHECK(memcmp(wide.address, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0);
		CHECK(memcmp(ip_addr(client), wide.address + 12, 4) == 0);
	}
	else
	{
		CHECK(ip_family(client) == PGSQL_AF_INET6);
		CHECK(memcmp(ip_addr(client), wide.address, 16) == 0);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *line = size > 0 ? memchr(data, '\n', size) : NULL;
	size_t		length = line ? line - data : size;
	char	   *list = fuzz_string(data, length);
	char	   *header = line ? fuzz_string(line + 1, size - length - 1) : pstrdup("");
	bool		valid;

	(void) is_listed(list, NULL, &valid);
	CHECK(ak_addresses_are_valid(list) == valid);

	/* The setting takes no other. */
	ak_trusted_proxies = valid ? list : pstrdup("10.0.0.0/8, ::1");
	CHECK(ak_client_address(NULL) == NULL);
	compare(header, ak_trusted_proxies);

	/* What a client puts in front changes nothing once one is not trusted. */
	{
		char	   *longer = palloc(strlen(header) + 32);

		sprintf(longer, "6.6.6.6, 192.0.2.1,%s", header);
		compare(longer, ak_trusted_proxies);
		sprintf(longer, "%s, 10.1.2.3", header);
		compare(longer, ak_trusted_proxies);
	}
	fuzz_end();
	return 0;
}
