from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("carillon", "0004_ended_session"),
    ]

    operations = [
        migrations.AddField(
            model_name="usersession",
            name="address",
            field=models.CharField(blank=True, db_default="", default="", max_length=64),
        ),
        migrations.AddField(
            model_name="usersession",
            name="client",
            field=models.CharField(blank=True, db_default="", default="", max_length=200),
        ),
    ]
