-- @config transforms=un,hf,htv,dh
-- @config transforms.un.type=io.debezium.transforms.ExtractNewRecordState
-- @config transforms.un.add.headers=op,source.table,ts_ms:at
-- @config transforms.un.delete.tombstone.handling.mode=rewrite
-- @config transforms.hf.type=org.apache.kafka.connect.transforms.HeaderFrom$Value
-- @config transforms.hf.fields=v,n
-- @config transforms.hf.headers=hv,hn
-- @config transforms.hf.operation=move
-- @config transforms.htv.type=io.debezium.transforms.HeaderToValue
-- @config transforms.htv.headers=__op,hn
-- @config transforms.htv.fields=oper,enn
-- @config transforms.htv.operation=copy
-- @config transforms.dh.type=org.apache.kafka.connect.transforms.DropHeaders
-- @config transforms.dh.headers=__source_table,__at
-- @setup
CREATE TABLE public.h (id int PRIMARY KEY, v text, n int, k text);
INSERT INTO public.h VALUES (1,'x',5,'y');
-- @stream
INSERT INTO public.h VALUES (2,NULL,NULL,NULL);
UPDATE public.h SET n=6 WHERE id=1;
DELETE FROM public.h WHERE id=1;
