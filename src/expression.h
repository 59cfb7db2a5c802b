/*-------------------------------------------------------------------------
 *
 * expression.h
 *	  Boolean expressions over permissions; see expression.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EXPRESSION_H
#define EXPRESSION_H

/* Parentheses within parentheses. */
#define AK_NESTING_MAX 64

/* One permission as it is held; may end in a wildcard. */
typedef struct AkPermission
{
	const char *name;			/* not terminated */
	int			length;
} AkPermission;

typedef struct AkHeld
{
	AkPermission *permissions;
	int			count;
} AkHeld;

/* What is wrong with an expression, or with the name of a permission. */
typedef enum AkFault
{
	AK_NO_FAULT,
	AK_FAULT_EMPTY,				/* nothing but white space */
	AK_FAULT_END,				/* ends where a permission is expected */
	AK_FAULT_OPERAND,			/* something else where one is expected */
	AK_FAULT_OPERATOR,			/* the same for AND and OR */
	AK_FAULT_NOT_OPENED,		/* a closing parenthesis too many */
	AK_FAULT_NOT_CLOSED,		/* an opening one */
	AK_FAULT_NESTING,			/* more than AK_NESTING_MAX of them */
	AK_FAULT_CHARACTER,			/* one that no permission has */
	AK_FAULT_SEGMENT,			/* an empty one */
	AK_FAULT_WILDCARD_ASKED,	/* a wildcard can only be held */
	AK_FAULT_WILDCARD_PLACE,	/* ... as the last segment */
	AK_FAULT_RESERVED			/* AND, OR or NOT as a permission */
} AkFault;

extern AkFault ak_expression_evaluate(const char *text, int length,
									  const AkHeld *held, bool *holds,
									  int *offset);
extern AkFault ak_permission_check(const char *name, int length, int *offset);

#endif							/* EXPRESSION_H */
