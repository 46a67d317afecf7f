-- @config skipped.operations=u,d
-- Plain table, REPLICA IDENTITY DEFAULT: snapshot rows, insert, update, delete (+ tombstone).
-- @setup
CREATE TABLE public.items (id integer PRIMARY KEY, name text NOT NULL, qty integer DEFAULT 5, note varchar(20));
INSERT INTO public.items VALUES (1, 'one', 10, NULL), (2, 'two', NULL, 'n2'), (3, 'three', 3, '');
-- @stream
INSERT INTO public.items (id, name) VALUES (4, 'four');
UPDATE public.items SET qty = 11, note = 'changed' WHERE id = 1;
UPDATE public.items SET qty = qty WHERE id = 2;          -- no-op update: still an event
UPDATE public.items SET qty = 1 WHERE id = 999;          -- matches nothing: no event
DELETE FROM public.items WHERE id = 3;
DELETE FROM public.items WHERE id = 999;
INSERT INTO public.items VALUES (3, 'three again', NULL, NULL);
