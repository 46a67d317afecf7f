-- @config transforms=unwrap
-- @config transforms.unwrap.type=io.debezium.transforms.ExtractNewRecordState
-- @config transforms.unwrap.delete.tombstone.handling.mode=rewrite-with-tombstone
-- @config transforms.unwrap.add.fields=op:OPERATION,source.ts_ms,before.v
-- @config transforms.unwrap.add.fields.prefix=meta_
-- @config transforms.unwrap.add.headers=op,source.db
-- @config transforms.unwrap.drop.fields.header.name=drop
-- @setup
CREATE TABLE public.un (id int PRIMARY KEY, v text);
INSERT INTO public.un VALUES (1,'x');
-- @stream
UPDATE public.un SET v='y';
UPDATE public.un SET id=2;
DELETE FROM public.un;
