/*
 * What src/expression.c needs of PostgreSQL's postgres.h, so that it can be
 * compiled by itself.
 */
#ifndef FUZZ_POSTGRES_H
#define FUZZ_POSTGRES_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#endif							/* FUZZ_POSTGRES_H */
