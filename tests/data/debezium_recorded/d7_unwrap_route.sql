-- ExtractNewRecordState: route.by.field.
-- @config transforms=un
-- @config transforms.un.type=io.debezium.transforms.ExtractNewRecordState
-- @config transforms.un.route.by.field=v
-- @config transforms.un.drop.fields.from.key=true
-- @config skipped.operations=none
-- @setup
CREATE TABLE public.r (id int PRIMARY KEY, v text NOT NULL, n int DEFAULT 4);
INSERT INTO public.r VALUES (1, 'first', NULL);
-- @stream
INSERT INTO public.r VALUES (2, 'second', 2);
UPDATE public.r SET v = 'third' WHERE id = 2;
