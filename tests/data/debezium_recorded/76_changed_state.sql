-- @config transforms=ch,un
-- @config transforms.ch.type=io.debezium.transforms.ExtractChangedRecordState
-- @config transforms.ch.header.changed.name=Changed
-- @config transforms.ch.header.unchanged.name=Unchanged
-- @config transforms.un.type=io.debezium.transforms.ExtractNewRecordState
-- @config transforms.un.drop.fields.header.name=Unchanged
-- @config transforms.un.drop.fields.keep.schema.compatible=false
-- @setup
CREATE TABLE public.cs (id int PRIMARY KEY, a text, b int);
ALTER TABLE public.cs REPLICA IDENTITY FULL;
INSERT INTO public.cs VALUES (1,'x',1);
-- @stream
UPDATE public.cs SET a='y';
UPDATE public.cs SET b=NULL;
DELETE FROM public.cs;
