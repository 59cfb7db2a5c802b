/*
 * The table of PostgreSQL's traditional CRC-32, which the backend has; there
 * it is constant, so this file does not include its declaration.
 */
#include <stdint.h>

uint32_t	pg_crc32_table[256];

__attribute__((constructor))
static void
fill(void)
{
	for (uint32_t i = 0; i < 256; i++)
	{
		uint32_t	crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320 : 0);
		pg_crc32_table[i] = crc;
	}
}
