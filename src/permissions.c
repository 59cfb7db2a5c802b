/*-------------------------------------------------------------------------
 *
 * permissions.c
 *	  What a key holds, and whether that satisfies what is asked for.
 *
 * expression.c parses and evaluates; here are its errors and where the
 * permissions come from: the key's own, and those of its roles, which
 * remember.c keeps.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikeys_check_permissions);

/* Longest expression, and longest permission that can be held, in bytes. */
#define EXPRESSION_MAX 4096
#define PERMISSION_MAX 255

/* ----- errors ----- */

static const char *
fault_detail(AkFault fault)
{
	switch (fault)
	{
		case AK_NO_FAULT:
			break;
		case AK_FAULT_EMPTY:
			return "The expression is empty.";
		case AK_FAULT_END:
			return "The expression ends where a permission is expected.";
		case AK_FAULT_OPERAND:
			return "A permission, NOT or \"(\" is expected.";
		case AK_FAULT_OPERATOR:
			return "AND, OR or the end is expected.";
		case AK_FAULT_NOT_OPENED:
			return "There is no opening parenthesis to this one.";
		case AK_FAULT_NOT_CLOSED:
			return "There is no closing parenthesis to this one.";
		case AK_FAULT_NESTING:
			return "Parentheses are nested more than "
				CppAsString2(AK_NESTING_MAX) " deep.";
		case AK_FAULT_CHARACTER:
			return "A permission consists of letters, digits, \"_\", \":\" and \"-\", with periods between its segments.";
		case AK_FAULT_SEGMENT:
			return "A segment of the permission is empty.";
		case AK_FAULT_WILDCARD_ASKED:
			return "A wildcard can be held by a key or a role, not asked for.";
		case AK_FAULT_WILDCARD_PLACE:
			return "A wildcard can only be the whole of the last segment.";
		case AK_FAULT_RESERVED:
			return "\"and\", \"or\" and \"not\" are operators, in any case of letters.";
	}
	elog(ERROR, "unexpected fault of a permission");
}

/*
 * All before a fault is ASCII, so its byte is its character.  The text itself
 * is not repeated: a secret may have been passed by mistake.
 */
static void
report_expression(AkFault fault, int offset)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid permissions expression at character %d",
					offset + 1),
			 errdetail("%s", fault_detail(fault)),
			 fault == AK_FAULT_EMPTY ?
			 errhint("Leave it out to ask for none.") :
			 errhint("Combine permissions by AND, OR, NOT and parentheses, as in: docs.read AND NOT (frozen OR archived).")));
}

/* ----- what is asked for ----- */

/*
 * Whether an expression holds for what is held.  Errors: 22023 for its syntax,
 * whatever is held.
 */
bool
ak_permissions_hold(const char *expression, const AkHeld *held)
{
	bool		holds = false;
	int			offset;
	AkFault		fault = ak_expression_evaluate(expression, strlen(expression),
											   held, &holds, &offset);

	if (fault != AK_NO_FAULT)
		report_expression(fault, offset);
	return holds;
}

/*
 * The expression that an argument gives, checked.  Its size is looked at
 * before it is read: a huge or compressed value is never expanded.
 */
char *
ak_permissions_expression(Datum value)
{
	static const AkHeld nothing = {0};
	Size		size = toast_raw_datum_size(value) - VARHDRSZ;
	char	   *expression;

	if (size > EXPRESSION_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("permissions expression is too long"),
				 errdetail("It has %zu bytes; the limit is %d.",
						   size, EXPRESSION_MAX)));
	expression = text_to_cstring(DatumGetTextPP(value));
	(void) ak_permissions_hold(expression, &nothing);
	return expression;
}

/* ----- what is held ----- */

/* Append an array's permissions to what is held. */
static void
hold_array(AkHeld *held, ArrayType *array)
{
	Datum	   *names;
	bool	   *nulls;
	int			n;
	Size		size;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &names, &nulls,
					  &n);
	if (n == 0)
		return;
	size = (held->count + (Size) n) * sizeof(AkPermission);
	held->permissions = held->permissions == NULL ? palloc(size) :
		repalloc(held->permissions, size);
	for (int i = 0; i < n; i++)
	{
		AkPermission *permission = &held->permissions[held->count];
		text	   *name;

		if (nulls[i])
			continue;
		name = DatumGetTextPP(names[i]);
		permission->name = VARDATA_ANY(name);
		permission->length = VARSIZE_ANY_EXHDR(name);
		held->count++;
	}
}

/*
 * All that a key holds, in the current memory context.  A role that does not
 * exist grants nothing.
 */
void
ak_held_by_key(const AkKey *key, AkHeld *held)
{
	Datum	   *names;
	bool	   *nulls;
	int			n;

	held->permissions = NULL;
	held->count = 0;
	hold_array(held, DatumGetArrayTypeP(key->values[AK_KEY_PERMISSIONS]));

	deconstruct_array(DatumGetArrayTypeP(key->values[AK_KEY_ROLES]), TEXTOID,
					  -1, false, TYPALIGN_INT, &names, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		AkRole		role;

		if (!nulls[i] &&
			ak_role_by_name(TextDatumGetCString(names[i]), &role))
			hold_array(held, role.permissions);
	}
}

/*
 * Check the permissions that a key or a role is about to hold.  Nulls are left
 * to the tables' constraints.
 */
void
ak_check_permissions(ArrayType *array)
{
	Datum	   *names;
	bool	   *nulls;
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &names, &nulls,
					  &n);
	for (int i = 0; i < n; i++)
	{
		const text *name;
		AkFault		fault;
		int			offset;

		if (nulls[i])
			continue;
		name = DatumGetTextPP(names[i]);
		if (VARSIZE_ANY_EXHDR(name) > PERMISSION_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("permission is too long"),
					 errdetail("Element %d of the array has %d bytes; the limit is %d.",
							   i + 1, (int) VARSIZE_ANY_EXHDR(name),
							   PERMISSION_MAX),
					 err_generic_string(PG_DIAG_COLUMN_NAME, "permissions")));
		fault = ak_permission_check(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name),
									&offset);
		if (fault != AK_NO_FAULT)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid permission in element %d at character %d",
							i + 1, offset + 1),
					 errdetail("%s", fault_detail(fault)),
					 errhint("Permissions look like \"read\", \"docs.read\", \"docs.*\" or \"*\"."),
					 err_generic_string(PG_DIAG_COLUMN_NAME, "permissions")));
	}
}

/* apikeys.check_permissions(permissions text[]) -> void */
Datum
apikeys_check_permissions(PG_FUNCTION_ARGS)
{
	ak_check_permissions(PG_GETARG_ARRAYTYPE_P(0));
	PG_RETURN_VOID();
}
