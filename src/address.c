/*-------------------------------------------------------------------------
 *
 * address.c
 *	  Whether an address lies in a network.
 *
 * A server that listens to IPv6 alone shows its IPv4 clients as ::ffff:a.b.c.d,
 * an IPv4 address in the clothes of IPv6.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/socket.h>

#include "apikeys.h"

/* Make an address or network of IPv4 out of one in the clothes of IPv6. */
void
ak_address_unmap(inet_struct *address)
{
	static const unsigned char mapped[12] = {[10] = 0xff,[11] = 0xff};

	if (address->family == PGSQL_AF_INET6 && address->bits >= 96 &&
		memcmp(address->ipaddr, mapped, sizeof(mapped)) == 0)
	{
		address->family = PGSQL_AF_INET;
		address->bits -= 96;
		memmove(address->ipaddr, address->ipaddr + sizeof(mapped), 4);
	}
}

/* Read a value of type inet or cidr. */
void
ak_address_read(const inet *value, inet_struct *address)
{
	memset(address, 0, sizeof(inet_struct));
	memcpy(address, VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
}

/* Whether an address (or network) lies in a network of its family. */
bool
ak_address_is_within(const inet_struct *address, const inet_struct *network)
{
	return address->family == network->family &&
		address->bits >= network->bits &&
		bitncmp((unsigned char *) address->ipaddr,
				(unsigned char *) network->ipaddr, network->bits) == 0;
}
