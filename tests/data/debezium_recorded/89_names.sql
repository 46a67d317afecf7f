-- @setup
CREATE SCHEMA "My.Schema";
CREATE TABLE "My.Schema"."a b" ("Id" int PRIMARY KEY, "select" text, "x.y" int, "ü" text, "q""q" text);
CREATE TABLE public."UPPER" ("ID" int, "id2" int, PRIMARY KEY ("ID"));
INSERT INTO "My.Schema"."a b" VALUES (1,'s',2,'ü','q');
INSERT INTO public."UPPER" VALUES (1,2);
-- @stream
UPDATE "My.Schema"."a b" SET "x.y"=3;
DELETE FROM "My.Schema"."a b";
UPDATE public."UPPER" SET "ID"=5;
