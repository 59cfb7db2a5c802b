-- Roles: named bundles of permissions. What a role may say is checked by its
-- trigger, for the functions and for plain INSERT and UPDATE alike.

CREATE FUNCTION @extschema@.apikey_role_create(name text, permissions text[] = '{}',
    description text = NULL)
RETURNS apikeys.role_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM apikeys.check_not_null(json_build_object('name', apikey_role_create.name));
    INSERT INTO apikeys.roles (name, permissions, description)
    VALUES (apikey_role_create.name,
        coalesce(apikey_role_create.permissions, '{}'),
        apikey_role_create.description)
    ON CONFLICT ON CONSTRAINT roles_pkey DO NOTHING;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'role "%" already exists', apikey_role_create.name
            USING ERRCODE = 'unique_violation',
            HINT = 'Use apikey_role_update to change it.';
    END IF;
    RETURN (SELECT r FROM apikeys.role_objects r WHERE r.name = apikey_role_create.name);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_role_create(text, text[], text) IS
'Create a role.
Keys that name the role in their roles hold its permissions besides their own. "docs.*" is all below "docs", "*" is everything.
Raises 23505 if the role exists, 22023 or 22004 for a value that cannot be.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_role_create(text, text[], text) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_role_list(page_size int = 100, page_offset int = 0)
RETURNS SETOF apikeys.role_objects
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM apikeys.check_page(apikey_role_list.page_size, apikey_role_list.page_offset);
    RETURN QUERY
        SELECT r.* FROM apikeys.role_objects r
         ORDER BY r.name
         LIMIT apikey_role_list.page_size OFFSET apikey_role_list.page_offset;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_role_list(int, int) IS
'List roles by name.
A page holds page_size roles, at most 1,000.
Raises 22023 for a page that cannot be.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_role_list(int, int) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_role_update(name text, patch jsonb) RETURNS apikeys.role_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed apikeys.roles;
BEGIN
    PERFORM apikeys.check_patch(apikey_role_update.patch,
        '{"description": "string?", "permissions": "strings?",
          "name": "!It never changes.",
          "created_at": "!It is set when the role is made.",
          "updated_at": "!It is kept by a trigger."}');

    SELECT r.* INTO changed FROM apikeys.roles r
     WHERE r.name = apikey_role_update.name
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('role', apikey_role_update.name);
    END IF;

    changed := jsonb_populate_record(changed, apikey_role_update.patch);
    UPDATE apikeys.roles r
       SET description = changed.description,
           permissions = coalesce(changed.permissions, '{}')
     WHERE r.name = apikey_role_update.name;
    RETURN (SELECT r FROM apikeys.role_objects r WHERE r.name = apikey_role_update.name);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_role_update(text, jsonb) IS
'Change a role.
patch gives the fields to set: description, permissions. Absent fields keep their values; null clears one (permissions become empty). The keys with the role hold the new permissions from the moment of the commit on.
Raises P0002 for an unknown role; 22023 for an unknown field or a wrong value.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_role_update(text, jsonb) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_role_delete(name text) RETURNS apikeys.role_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    deleted apikeys.role_objects;
BEGIN
    DELETE FROM apikeys.roles r
     WHERE r.name = apikey_role_delete.name
    RETURNING r.name, r.description, r.permissions, r.created_at, r.updated_at
         INTO deleted;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('role', apikey_role_delete.name);
    END IF;
    RETURN deleted;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_role_delete(text) IS
'Delete a role, for good.
It grants nothing from the moment of the commit on. Keys keep its name: a new role of that name is theirs again.
Raises P0002 for an unknown role.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_role_delete(text) FROM PUBLIC;
